#include <cstring>

#include "core/dtype.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

constexpr int kBits = 32;  // of a mask word

// Bit i of the result is byte i (0 or 1): each byte's product with one power of two lands in the top byte.
inline __attribute__((always_inline)) uint32_t bits_of(const uint8_t* flags) {
  uint64_t bytes;
  std::memcpy(&bytes, flags, 8);
  return static_cast<uint32_t>(bytes * 0x0102040810204080u >> 56);
}

// How a type's elements are looked at. The signs of 16-bit numbers are read off their bits, which vectorises
// where a conversion does not. NaN is neither negative nor zero.
template <class T>
struct Element {
  using Item = T;
  RAD_HD static bool negative(T v) { return v < 0; }
  RAD_HD static bool zero(T v) { return v == 0; }
};
template <int kMinusInfinity>
struct Element16 {
  using Item = uint16_t;
  RAD_HD static bool negative(uint16_t v) { return v > 0x8000 && v <= kMinusInfinity; }
  RAD_HD static bool zero(uint16_t v) { return (v & 0x7FFF) == 0; }
};
template <>
struct Element<BFloat16> : Element16<0xFF80> {};
template <>
struct Element<Half> : Element16<0xFC00> {};

// One word's elements, and the word; the fixed count lets the loops vectorise.
template <class E>
inline __attribute__((always_inline)) uint32_t relu_word(const typename E::Item* x, typename E::Item* y) {
  uint8_t flags[kBits];
  for (int b = 0; b < kBits; ++b) {
    const auto value = x[b];
    const bool below = E::negative(value);
    y[b] = below ? 0 : value;
    flags[b] = !(below | E::zero(value));
  }
  return bits_of(flags) | bits_of(flags + 8) << 8 | bits_of(flags + 16) << 16 | bits_of(flags + 24) << 24;
}

template <class T>
inline __attribute__((always_inline)) void masked_word(uint32_t word, const T* dy, T* dx) {
  for (int b = 0; b < kBits; ++b) dx[b] = word >> b & 1u ? dy[b] : T{};
}

// Function multiversioning takes no templates, so one overload a type.
#define RAD_MASK_LOOPS(T)                                                                              \
  RAD_VECTOR_CLONES void relu_words(Element<T>, const Element<T>::Item* x, Element<T>::Item* y,        \
                                    uint32_t* mask, int64_t words) {                                   \
    for (int64_t w = 0; w < words; ++w) mask[w] = relu_word<Element<T>>(x + w * kBits, y + w * kBits); \
  }
#define RAD_MASKED_LOOPS(T)                                                                      \
  RAD_VECTOR_CLONES void masked_words(const uint32_t* mask, const T* dy, T* dx, int64_t words) { \
    for (int64_t w = 0; w < words; ++w) masked_word(mask[w], dy + w * kBits, dx + w * kBits);    \
  }
RAD_MASK_LOOPS(float)
RAD_MASK_LOOPS(double)
RAD_MASK_LOOPS(BFloat16)
RAD_MASK_LOOPS(Half)
RAD_MASKED_LOOPS(uint16_t)
RAD_MASKED_LOOPS(uint32_t)
RAD_MASKED_LOOPS(uint64_t)

// Where x lets the gradient pass, one rule at a time, so that the loop has no branch.
template <Rule R, class Real>
RAD_HD bool passes(Real x, Real lo, Real hi) {
  if constexpr (R == Rule::kAbove) return x > lo;
  if constexpr (R == Rule::kNotBelow) return !(x <= lo);
  if constexpr (R == Rule::kBetween) return !((x <= lo) | (x >= hi));
  if constexpr (R == Rule::kWithin) return (x > lo) & (x < hi);
  if constexpr (R == Rule::kOutside) return !((x >= lo) & (x <= hi));
}

template <Rule R, class T>
inline __attribute__((always_inline)) void kink_run(const T* x, Accumulate<T> lo, Accumulate<T> hi,
                                                    uint32_t* mask, int64_t words) {
  for (int64_t w = 0; w < words; ++w, x += kBits) {
    uint8_t flags[kBits];
    for (int b = 0; b < kBits; ++b) flags[b] = passes<R>(widen(x[b]), lo, hi);
    mask[w] =
        bits_of(flags) | bits_of(flags + 8) << 8 | bits_of(flags + 16) << 16 | bits_of(flags + 24) << 24;
  }
}

template <class T>
inline __attribute__((always_inline)) void kink_all(Rule rule, const T* x, double lo, double hi,
                                                    uint32_t* mask, int64_t words) {
  const auto a = static_cast<Accumulate<T>>(lo), b = static_cast<Accumulate<T>>(hi);
  switch (rule) {
    case Rule::kAbove:
      return kink_run<Rule::kAbove>(x, a, b, mask, words);
    case Rule::kNotBelow:
      return kink_run<Rule::kNotBelow>(x, a, b, mask, words);
    case Rule::kBetween:
      return kink_run<Rule::kBetween>(x, a, b, mask, words);
    case Rule::kWithin:
      return kink_run<Rule::kWithin>(x, a, b, mask, words);
    case Rule::kOutside:
      return kink_run<Rule::kOutside>(x, widen(narrow<T>(a)), widen(narrow<T>(b)), mask, words);
  }
}

// An off factor of zero selects: what is not finite does not pass either.
template <class T>
inline __attribute__((always_inline)) void sloped_run(uint32_t word, const T* dy, Accumulate<T> on,
                                                      Accumulate<T> off, T* dx, int64_t count) {
  for (int64_t b = 0; b < count; ++b) {
    const auto value = widen(dy[b]), outside = off == 0 ? Accumulate<T>(0) : value * off;
    dx[b] = narrow<T>(word >> b & 1u ? value * on : outside);
  }
}

// Whole words have a fixed length, so that they vectorise.
template <class T>
inline __attribute__((always_inline)) void sloped_all(const uint32_t* mask, const T* dy, double on,
                                                      double off, T* dx, int64_t words, int64_t rest) {
  const auto a = static_cast<Accumulate<T>>(on), b = static_cast<Accumulate<T>>(off);
  for (int64_t w = 0; w < words; ++w) sloped_run(mask[w], dy + w * kBits, a, b, dx + w * kBits, kBits);
  if (rest) sloped_run(mask[words], dy + words * kBits, a, b, dx + words * kBits, rest);
}

#define RAD_KINK_LOOPS(T)                                                                              \
  RAD_VECTOR_CLONES void kink_words(Rule rule, const T* x, double lo, double hi, uint32_t* mask,       \
                                    int64_t words) {                                                   \
    kink_all(rule, x, lo, hi, mask, words);                                                            \
  }                                                                                                    \
  RAD_VECTOR_CLONES void sloped_items(const uint32_t* mask, const T* dy, double on, double off, T* dx, \
                                      int64_t words, int64_t rest) {                                   \
    sloped_all(mask, dy, on, off, dx, words, rest);                                                    \
  }
RAD_KINK_LOOPS(float)
RAD_KINK_LOOPS(double)
RAD_KINK_LOOPS(BFloat16)
RAD_KINK_LOOPS(Half)

constexpr int64_t kWordGrain = 1 << 10;

}  // namespace

int relu(const ReluArgs& args) {
  return visit_dtype(args.dtype, [&](auto tag) {
    using E = Element<typename decltype(tag)::type>;
    using T = typename E::Item;
    const auto* x = static_cast<const T*>(args.x);
    auto* y = static_cast<T*>(args.y);
    const int64_t whole = args.n / kBits, rest = args.n % kBits;
    parallel_for(args.exec, whole, kWordGrain, [&](int64_t begin, int64_t end) {
      relu_words(E{}, x + begin * kBits, y + begin * kBits, args.mask + begin, end - begin);
    });
    if (rest) {
      T tail_x[kBits] = {}, tail_y[kBits];  // zeros set no bits
      std::memcpy(static_cast<void*>(tail_x), x + whole * kBits, rest * sizeof(T));
      args.mask[whole] = relu_word<E>(tail_x, tail_y);
      std::memcpy(static_cast<void*>(y + whole * kBits), tail_y, rest * sizeof(T));
    }
    return 0;
  });
}

int kink(const KinkArgs& args) {
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* x = static_cast<const T*>(args.x);
    const int64_t whole = args.n / kBits, rest = args.n % kBits;
    parallel_for(args.exec, whole, kWordGrain, [&](int64_t begin, int64_t end) {
      kink_words(args.rule, x + begin * kBits, args.lo, args.hi, args.mask + begin, end - begin);
    });
    if (rest) {
      T tail[kBits] = {};
      std::memcpy(static_cast<void*>(tail), x + whole * kBits, rest * sizeof(T));
      kink_words(args.rule, tail, args.lo, args.hi, args.mask + whole, 1);
      args.mask[whole] &= (1u << rest) - 1;
    }
    return 0;
  });
}

int sloped(const SlopedArgs& args) {
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    parallel_for(args.exec, (args.n + kBits - 1) / kBits, kWordGrain, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * kBits, count = std::min(end * kBits, args.n) - first;
      sloped_items(args.mask + begin, static_cast<const T*>(args.dy) + first, args.on, args.off,
                   static_cast<T*>(args.dx) + first, count / kBits, count % kBits);
    });
    return 0;
  });
}

int masked(const MaskedArgs& args) {
  return visit_item(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const auto* dy = static_cast<const T*>(args.dy);
    auto* dx = static_cast<T*>(args.dx);
    const int64_t whole = args.n / kBits;
    parallel_for(args.exec, whole, kWordGrain, [&](int64_t begin, int64_t end) {
      masked_words(args.mask + begin, dy + begin * kBits, dx + begin * kBits, end - begin);
    });
    for (int64_t i = whole * kBits; i < args.n; ++i)
      dx[i] = args.mask[whole] >> (i % kBits) & 1u ? dy[i] : T{};
    return 0;
  });
}

}  // namespace rad::cpu
