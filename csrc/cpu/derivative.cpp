#include "cpu/derivative.h"

#include "cpu/lanes.h"

namespace rad::cpu {
namespace {

template <class Real>
RAD_INLINE bool derive_all(const Activation& f, const Real* x, Real* out) {
  const auto a = static_cast<Real>(f.a), b = static_cast<Real>(f.b), c = static_cast<Real>(f.c);
  int unequal = 0;
  for (int64_t i = 0; i < kBlock; ++i) unequal |= x[i] != x[i];
  // A reference captured by the closure may alias `out` as far as the compiler knows: copies do not.
  visit_function(f.function, [=](auto tag) __attribute__((always_inline)) {
    for (int64_t i = 0; i < kBlock; ++i) out[i] = derivative<decltype(tag)::value>(x[i], a, b, c);
  });
  return unequal != 0 && spoilt_by_nan(f.function);
}

// Function multiversioning takes no templates.
RAD_VECTOR_CLONES bool derive(const Activation& f, const float* x, float* out) {
  return derive_all(f, x, out);
}
RAD_VECTOR_CLONES bool derive(const Activation& f, const double* x, double* out) {
  return derive_all(f, x, out);
}

}  // namespace

template <class Real>
bool derivative_block(const Activation& f, const Block<Real>& x, Block<Real>& out) {
  return derive(f, x.value, out.value);
}

template bool derivative_block<float>(const Activation&, const Block<float>&, Block<float>&);
template bool derivative_block<double>(const Activation&, const Block<double>&, Block<double>&);

}  // namespace rad::cpu
