#include "cpu/derivative.h"

#include <algorithm>

#include "cpu/lanes.h"

namespace rad::cpu {
namespace {

// Loops of one fixed length, so that they vectorise. Function multiversioning takes no templates, so one
// overload a type.
template <class T>
inline __attribute__((always_inline)) void widen_all(const T* x, Accumulate<T>* out) {
  for (int i = 0; i < Block<float>::kCount; ++i) out[i] = widen(x[i]);
}

template <class T>
inline __attribute__((always_inline)) void multiply_all(const T* dy, const Accumulate<T>* factor, T* out) {
  for (int i = 0; i < Block<float>::kCount; ++i) out[i] = narrow<T>(widen(dy[i]) * factor[i]);
}

template <class Real>
inline __attribute__((always_inline)) bool derive_all(const Activation& f, const Real* x, Real stand_in,
                                                      Real* out) {
  const auto a = static_cast<Real>(f.a), b = static_cast<Real>(f.b), c = static_cast<Real>(f.c);
  // A reference captured by the closure may alias `out` as far as the compiler knows: copies do not.
  visit_function(f.function, [=](auto tag) __attribute__((always_inline)) {
    for (int i = 0; i < Block<Real>::kCount; ++i) out[i] = derivative<decltype(tag)::value>(x[i], a, b, c);
  });
  int unequal = 0;
  for (int i = 0; i < Block<Real>::kCount; ++i) {
    unequal |= out[i] != out[i];
    out[i] = out[i] != out[i] ? stand_in : out[i];
  }
  return unequal != 0;
}

#define RAD_LOOPS(T)                                                                         \
  RAD_VECTOR_CLONES void widen_block(const T* x, Accumulate<T>* out) { widen_all(x, out); }  \
  RAD_VECTOR_CLONES void multiply_values(const T* dy, const Accumulate<T>* factor, T* out) { \
    multiply_all(dy, factor, out);                                                           \
  }
RAD_LOOPS(float)
RAD_LOOPS(double)
RAD_LOOPS(BFloat16)
RAD_LOOPS(Half)
RAD_VECTOR_CLONES bool derive(const Activation& f, const float* x, float stand_in, float* out) {
  return derive_all(f, x, stand_in, out);
}
RAD_VECTOR_CLONES bool derive(const Activation& f, const double* x, double stand_in, double* out) {
  return derive_all(f, x, stand_in, out);
}

}  // namespace

template <class T>
void load_block(const T* x, int64_t count, Block<Accumulate<T>>& out) {
  if (count == Block<float>::kCount) return widen_block(x, out.value);
  for (int64_t i = 0; i < Block<float>::kCount; ++i) out.value[i] = widen(x[i < count ? i : 0]);
}

template <class Real>
bool derivative_block(const Activation& f, const Block<Real>& x, Real stand_in, Block<Real>& out) {
  return derive(f, x.value, stand_in, out.value);
}

template <class T>
void multiply_block(const T* dy, const Block<Accumulate<T>>& factor, int64_t count, T* out) {
  if (count == Block<float>::kCount) return multiply_values(dy, factor.value, out);
  for (int64_t i = 0; i < count; ++i) out[i] = narrow<T>(widen(dy[i]) * factor.value[i]);
}

#define RAD_INSTANTIATE(T)                                               \
  template void load_block<T>(const T*, int64_t, Block<Accumulate<T>>&); \
  template void multiply_block<T>(const T*, const Block<Accumulate<T>>&, int64_t, T*);
RAD_INSTANTIATE(float)
RAD_INSTANTIATE(double)
RAD_INSTANTIATE(BFloat16)
RAD_INSTANTIATE(Half)
template bool derivative_block<float>(const Activation&, const Block<float>&, float, Block<float>&);
template bool derivative_block<double>(const Activation&, const Block<double>&, double, Block<double>&);

}  // namespace rad::cpu
