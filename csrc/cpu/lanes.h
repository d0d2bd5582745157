// Random lines on the CPU, many Philox calls side by side. The words are those of core/philox.h.
#pragma once
#include <type_traits>

#include "core/sampler.h"

// The hot loops are compiled for three generations of x86-64 and chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_UNDEFINED__)
#define RAD_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define RAD_VECTOR_CLONES
#endif

#define RAD_INLINE inline __attribute__((always_inline))

namespace rad::cpu {

// Vectors of 64 bytes, for reductions: arrays of partial results the compiler takes apart into scalars.
template <class Real>
struct Wide {
  using Vector [[gnu::vector_size(64)]] = Real;
  using Places [[gnu::vector_size(64)]] = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
  static constexpr int kCount = 64 / sizeof(Real);

  Vector v;

  RAD_INLINE explicit Wide(const Real* from) { __builtin_memcpy(&v, from, sizeof v); }

  // Its items joined to one: the first half with the second, and again.
  template <class Join>
  RAD_INLINE static Real joined(Vector v, const Join& join) {
    Places from;
    for (int i = 0; i < kCount; ++i) from[i] = i;
    for (int half = kCount / 2; half > 0; half /= 2) {
      const Vector other = __builtin_shuffle(v, from + half);
      join(v, other);
    }
    return v[0];
  }
};

constexpr int kLanes = 16;  // two vectors of 64-bit products

// words[j][lane] = word j of call first + lane of line `outer`.
void philox_lanes(uint64_t key, uint64_t salt, Role role, uint64_t outer, uint64_t first,
                  uint32_t (&words)[4][kLanes]);

// words[4 lane + j] = word j of call first + lane, as calls are used one after the other.
void philox_words(uint64_t key, uint64_t salt, Role role, uint64_t outer, uint64_t first,
                  uint32_t (&words)[4 * kLanes]);

// out[i - begin] = sampler.index(row, i) for i in [begin, end).
void different_row(const Sampler& sampler, int64_t row, int64_t begin, int64_t end, int64_t* out);

// noise[i] = the 16 dither bits of value begin + i of a stored line, for i in [0, 128); 128 divides begin.
void dither_block(uint64_t key, uint64_t salt, int64_t line, int64_t begin, uint16_t* noise,
                  Role role = Role::kDither);

}  // namespace rad::cpu
