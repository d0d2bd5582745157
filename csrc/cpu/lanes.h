// Random lines on the CPU, many Philox calls side by side. The words are those of core/philox.h.
#pragma once
#include "core/sampler.h"

// The hot loops are compiled for three generations of x86-64 and chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_UNDEFINED__)
#define RAD_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define RAD_VECTOR_CLONES
#endif

namespace rad::cpu {

constexpr int kLanes = 16;  // two vectors of 64-bit products

// words[j][lane] = word j of call first + lane of line `outer`.
void philox_lanes(uint64_t key, uint64_t salt, Role role, uint64_t outer, uint64_t first,
                  uint32_t (&words)[4][kLanes]);

// out[i - begin] = sampler.index(row, i) for i in [begin, end).
void different_row(const Sampler& sampler, int64_t row, int64_t begin, int64_t end, int64_t* out);

// noise[i] = the 16 dither bits of value begin + i of a stored line, for i in [0, 128); 128 divides begin.
void dither_block(uint64_t key, uint64_t salt, int64_t line, int64_t begin, uint16_t* noise,
                  Role role = Role::kDither);

}  // namespace rad::cpu
