// A keyed permutation of [0, n) without a table: sampling without replacement from the key alone.
#pragma once
#include "core/philox.h"

namespace rad {

// Twelve balanced Feistel rounds over [0, 4^h) with cycle walking, then a rotation by an independent uniform
// offset, which alone makes each entry's inclusion exact (docs/maths.md, rotation). Fewer rounds leave
// visible error in pairs.
struct Permutation {
  static constexpr int kRounds = 12;

  uint32_t round_key[kRounds];
  int half_bits;
  int64_t n, rotation;

  RAD_HD Permutation(uint64_t key, uint64_t salt, uint64_t outer, int64_t n_) : half_bits(1), n(n_) {
    while ((int64_t{1} << (2 * half_bits)) < n) ++half_bits;
    for (int call = 0; call < kRounds / 4; ++call) {
      const Words words = random_words(key, salt, Role::kPermutation, outer, call);
      for (int i = 0; i < 4; ++i) round_key[4 * call + i] = words.w[i];
    }
    const Words words = random_words(key, salt, Role::kPermutation, outer, kRounds / 4);
    rotation = static_cast<int64_t>(mulhi64(word64(words, 0), n));
  }

  RAD_HD static uint32_t mix(uint32_t x) {
    x *= 0x9E3779B1u;
    x ^= x >> 15;
    x *= 0x85EBCA77u;
    x ^= x >> 13;
    x *= 0xC2B2AE3Du;
    return x ^ x >> 16;
  }

  RAD_HD uint64_t once(uint64_t position) const {
    const uint32_t mask = (1u << half_bits) - 1;
    uint32_t left = static_cast<uint32_t>(position >> half_bits),
             right = static_cast<uint32_t>(position) & mask;
    for (int round = 0; round < kRounds; ++round) {
      const uint32_t next = left ^ (mix(right + round_key[round]) & mask);
      left = right;
      right = next;
    }
    return static_cast<uint64_t>(left) << half_bits | right;
  }

  RAD_HD int64_t operator()(int64_t i) const {
    uint64_t position = i;
    do {
      position = once(position);
    } while (position >= static_cast<uint64_t>(n));
    const int64_t rotated = static_cast<int64_t>(position) + rotation;
    return rotated < n ? rotated : rotated - n;
  }
};

}  // namespace rad
