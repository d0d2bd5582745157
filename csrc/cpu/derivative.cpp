#include "cpu/derivative.h"

#include "cpu/lanes.h"

namespace rad::cpu {
namespace {

template <class Real>
RAD_INLINE bool derive_all(const Activation& f, const Real* x, Real stand_in, Real* out) {
  const auto a = static_cast<Real>(f.a), b = static_cast<Real>(f.b), c = static_cast<Real>(f.c);
  // A reference captured by the closure may alias `out` as far as the compiler knows: copies do not.
  visit_function(f.function, [=](auto tag) __attribute__((always_inline)) {
    for (int64_t i = 0; i < kBlock; ++i) out[i] = derivative<decltype(tag)::value>(x[i], a, b, c);
  });
  int unequal = 0;
  for (int64_t i = 0; i < kBlock; ++i) {
    unequal |= out[i] != out[i];
    out[i] = out[i] != out[i] ? stand_in : out[i];
  }
  return unequal != 0;
}

// Function multiversioning takes no templates.
RAD_VECTOR_CLONES bool derive(const Activation& f, const float* x, float stand_in, float* out) {
  return derive_all(f, x, stand_in, out);
}
RAD_VECTOR_CLONES bool derive(const Activation& f, const double* x, double stand_in, double* out) {
  return derive_all(f, x, stand_in, out);
}

}  // namespace

template <class Real>
bool derivative_block(const Activation& f, const Block<Real>& x, Real stand_in, Block<Real>& out) {
  return derive(f, x.value, stand_in, out.value);
}

template bool derivative_block<float>(const Activation&, const Block<float>&, float, Block<float>&);
template bool derivative_block<double>(const Activation&, const Block<double>&, double, Block<double>&);

}  // namespace rad::cpu
