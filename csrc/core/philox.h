// Philox4x32-10 (Salmon et al., SC 2011), the only source of randomness in the package. A word is a pure
// function of (key, salt, logical coordinate, role): never of a thread, a block or a launch shape.
#pragma once
#include "core/host_device.h"

namespace rad {

struct Words {
  uint32_t w[4];
};

// Independent streams. Noise that meets along one path of a network must never share a stream
// (docs/maths.md, independence).
enum class Role : uint32_t {
  kRowSample = 1,
  kFeatureSample = 2,
  kDither = 3,
  kSigns = 4,
  kPermutation = 5,
  kDropout = 6,
  kDerivative = 7,
  kProbability = 16,
  kRecurrent = 32,  // to 37: one for each stream of factors of a recurrent layer
};

// How the 64-bit products are made: kernels bring the one instruction that nvcc does not find.
struct PlainProduct {
  RAD_HD static uint64_t of(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b; }
};

// mulhi64 for b below 2^32.
template <class Product = PlainProduct>
RAD_HD uint32_t mulhi64_short(uint64_t a, uint32_t b) {
  const uint64_t low = Product::of(static_cast<uint32_t>(a), b) >> 32;
  return static_cast<uint32_t>((Product::of(static_cast<uint32_t>(a >> 32), b) + low) >> 32);
}

template <class Product = PlainProduct>
RAD_HD Words philox4x32(Words c, uint32_t k0, uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = Product::of(0xD2511F53u, c.w[0]);
    const uint64_t p1 = Product::of(0xCD9E8D57u, c.w[2]);
    c = Words{{static_cast<uint32_t>(p1 >> 32) ^ c.w[1] ^ k0, static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ c.w[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// The counter of call `inner` of line `outer` (both below 2^44) in one stream.
RAD_HD Words random_counter(uint64_t salt, Role role, uint64_t outer, uint64_t inner) {
  return Words{{static_cast<uint32_t>(inner), static_cast<uint32_t>(outer),
                static_cast<uint32_t>((inner >> 32) & 0xFFF) |
                    static_cast<uint32_t>((outer >> 32) & 0xFFF) << 12 | static_cast<uint32_t>(role) << 24,
                static_cast<uint32_t>(salt)}};
}

// The 128 bits of that call.
template <class Product = PlainProduct>
RAD_HD Words random_words(uint64_t key, uint64_t salt, Role role, uint64_t outer, uint64_t inner) {
  return philox4x32<Product>(random_counter(salt, role, outer, inner), static_cast<uint32_t>(key),
                             static_cast<uint32_t>(key >> 32));
}

// One call serves two 64-bit words: number i of line `outer` is half i % 2 of call i / 2.
RAD_HD uint64_t word64(const Words& call, int half) {
  // A select, not an index: indexed, the words would live in the GPU's local memory.
  return half ? static_cast<uint64_t>(call.w[3]) << 32 | call.w[2]
              : static_cast<uint64_t>(call.w[1]) << 32 | call.w[0];
}

}  // namespace rad
