#include "cpu/different_row.h"

#include <algorithm>

namespace rad::cpu {
namespace {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define RAD_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define RAD_VECTOR_CLONES
#endif

// words[half][lane] = word64 of call first + lane: random_words() written so that compilers vectorise it.
RAD_VECTOR_CLONES void philox_lanes(uint64_t key, uint64_t salt, uint32_t role, uint64_t row, uint64_t first,
                                    uint64_t (&words)[2][kLanes]) {
  uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t call = first + i;
    c0[i] = static_cast<uint32_t>(call);
    c1[i] = static_cast<uint32_t>(row);
    c2[i] = static_cast<uint32_t>((call >> 32) & 0xFFF) | static_cast<uint32_t>((row >> 32) & 0xFFF) << 12 | role << 24;
    c3[i] = static_cast<uint32_t>(salt);
  }
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0[i];
      const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2[i];
      c0[i] = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
      c1[i] = static_cast<uint32_t>(p1);
      c2[i] = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
      c3[i] = static_cast<uint32_t>(p0);
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  for (int i = 0; i < kLanes; ++i) {
    words[0][i] = static_cast<uint64_t>(c1[i]) << 32 | c0[i];
    words[1][i] = static_cast<uint64_t>(c3[i]) << 32 | c2[i];
  }
}

}  // namespace

void different_row(const Sampler& sampler, int64_t row, int64_t begin, int64_t end, int64_t* out) {
  uint64_t words[2][kLanes];
  for (int64_t i = begin; i < end;) {
    const int64_t first_call = i >> 1, stop = std::min(end, (first_call + kLanes) * 2);
    philox_lanes(sampler.key, sampler.salt, static_cast<uint32_t>(sampler.role), row, first_call, words);
    for (; i < stop; ++i) {
      out[i - begin] = sampled_index(sampler.draw, sampler.strata, i, words[i & 1][(i >> 1) - first_call]);
    }
  }
}

}  // namespace rad::cpu
