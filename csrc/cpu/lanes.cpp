#include "cpu/lanes.h"

#include <algorithm>

namespace rad::cpu {
namespace {

RAD_VECTOR_CLONES void rounds(uint32_t k0, uint32_t k1, uint32_t* c0, uint32_t* c1, uint32_t* c2,
                              uint32_t* c3) {
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
}

}  // namespace

void philox_lanes(uint64_t key, uint64_t salt, Role role, uint64_t outer, uint64_t first,
                  uint32_t (&words)[4][kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    const Words counter = random_counter(salt, role, outer, first + i);
    for (int j = 0; j < 4; ++j) words[j][i] = counter.w[j];
  }
  rounds(static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32), words[0], words[1], words[2],
         words[3]);
}

void different_row(const Sampler& sampler, int64_t row, int64_t begin, int64_t end, int64_t* out) {
  uint32_t words[4][kLanes];
  for (int64_t i = begin; i < end;) {
    const int64_t first = i >> 1, stop = std::min(end, (first + kLanes) * 2);
    philox_lanes(sampler.key, sampler.salt, sampler.role, row, first, words);
    for (; i < stop; ++i) {
      const int64_t lane = (i >> 1) - first, half = 2 * (i & 1);
      const uint64_t word = static_cast<uint64_t>(words[half + 1][lane]) << 32 | words[half][lane];
      out[i - begin] = sampled_index(sampler.draw, sampler.strata, i, word);
    }
  }
}

void dither_block(uint64_t key, uint64_t salt, int64_t line, int64_t begin, uint16_t* noise) {
  static_assert(8 * kLanes == 128);
  uint32_t words[4][kLanes];
  philox_lanes(key, salt, Role::kDither, line, begin >> 3, words);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int j = 0; j < 4; ++j) {
      noise[8 * lane + 2 * j] = static_cast<uint16_t>(words[j][lane]);
      noise[8 * lane + 2 * j + 1] = static_cast<uint16_t>(words[j][lane] >> 16);
    }
  }
}

}  // namespace rad::cpu
