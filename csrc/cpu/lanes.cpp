#include "cpu/lanes.h"

#include <algorithm>

namespace rad::cpu {
namespace {

// kLanes calls, the first with this counter, that differ in the counter's first word alone. The rounds are
// unrolled, so that the loop over lanes vectorises and its state stays in registers.
RAD_INLINE void all_rounds(const Words& first, uint32_t k0, uint32_t k1, uint32_t (&words)[4][kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    Words counter = first;
    counter.w[0] += static_cast<uint32_t>(i);
    const Words w = philox4x32(counter, k0, k1);
    for (int j = 0; j < 4; ++j) words[j][i] = w.w[j];
  }
}

RAD_VECTOR_CLONES void rounds(const Words& first, uint32_t k0, uint32_t k1, uint32_t (&words)[4][kLanes]) {
  all_rounds(first, k0, k1, words);
}

RAD_VECTOR_CLONES void rounds_in_order(const Words& first, uint32_t k0, uint32_t k1,
                                       uint32_t (&out)[4 * kLanes]) {
  uint32_t words[4][kLanes];
  all_rounds(first, k0, k1, words);
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < 4; ++j) out[4 * i + j] = words[j][i];
}

// Whether calls first ... first + kLanes - 1 differ in the counter's first word alone.
bool one_word(uint64_t first) { return static_cast<uint32_t>(first) <= 0xFFFFFFFFu - (kLanes - 1); }

}  // namespace

void philox_lanes(uint64_t key, uint64_t salt, Role role, uint64_t outer, uint64_t first,
                  uint32_t (&words)[4][kLanes]) {
  if (one_word(first)) {
    rounds(random_counter(salt, role, outer, first), static_cast<uint32_t>(key),
           static_cast<uint32_t>(key >> 32), words);
    return;
  }
  for (int i = 0; i < kLanes; ++i) {
    const Words w = random_words(key, salt, role, outer, first + i);
    for (int j = 0; j < 4; ++j) words[j][i] = w.w[j];
  }
}

void philox_words(uint64_t key, uint64_t salt, Role role, uint64_t outer, uint64_t first,
                  uint32_t (&words)[4 * kLanes]) {
  if (one_word(first)) {
    rounds_in_order(random_counter(salt, role, outer, first), static_cast<uint32_t>(key),
                    static_cast<uint32_t>(key >> 32), words);
    return;
  }
  uint32_t lanes[4][kLanes];
  philox_lanes(key, salt, role, outer, first, lanes);
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < 4; ++j) words[4 * i + j] = lanes[j][i];
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
  alignas(64) uint32_t words[4 * kLanes];
  philox_words(key, salt, role, line, begin >> 3, words);
  for (int i = 0; i < 4 * kLanes; ++i) {
    noise[2 * i] = static_cast<uint16_t>(words[i]);
    noise[2 * i + 1] = static_cast<uint16_t>(words[i] >> 16);
  }
}

}  // namespace rad::cpu
