#include "cpu/lanes.h"

#include <algorithm>

namespace rad::cpu {
namespace {

// Each lane's rounds are unrolled, so that the loop over lanes vectorises and its state stays in registers.
RAD_VECTOR_CLONES void rounds(uint32_t k0, uint32_t k1, uint32_t* c0, uint32_t* c1, uint32_t* c2,
                              uint32_t* c3) {
  for (int i = 0; i < kLanes; ++i) {
    const Words w = philox4x32({{c0[i], c1[i], c2[i], c3[i]}}, k0, k1);
    c0[i] = w.w[0], c1[i] = w.w[1], c2[i] = w.w[2], c3[i] = w.w[3];
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

void dither_block(uint64_t key, uint64_t salt, int64_t line, int64_t begin, uint16_t* noise, Role role) {
  static_assert(8 * kLanes == 128);
  uint32_t words[4][kLanes];
  philox_lanes(key, salt, role, line, begin >> 3, words);
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int j = 0; j < 4; ++j) {
      noise[8 * lane + 2 * j] = static_cast<uint16_t>(words[j][lane]);
      noise[8 * lane + 2 * j + 1] = static_cast<uint16_t>(words[j][lane] >> 16);
    }
  }
}

}  // namespace rad::cpu
