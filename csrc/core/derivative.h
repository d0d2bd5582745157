// Derivatives of activation functions, their fixed ranges, and the buffer of their codes (docs/maths.md,
// derivatives). Single IEEE operations in a fixed order: all devices have the same bits.
#pragma once
#include "core/exponential.h"
#include "core/layout.h"
#include "kernels.h"

namespace rad {

// f'(x) where |x| is large enough to be cut off here, so that no infinity meets a zero.
template <class Real>
struct Farthest {
  static constexpr Real kLogistic = sizeof(Real) == 4 ? 87 : 708;  // exp(-x) is still a normal number
  static constexpr Real kNormal = sizeof(Real) == 4 ? 13 : 37;     // so is exp(-x^2 / 2)
  static constexpr Real kMish = sizeof(Real) == 4 ? 20 : 40;       // exp(4 x) does not overflow
};

template <class Real>
RAD_HD Real gelu_derivative(Real any) {
  const Real x = clamped(any, -Farthest<Real>::kNormal, Farthest<Real>::kNormal), z = x < 0 ? -x : x;
  const Real bell = Exponential<Real>::of(product(product(Real(-0.5), z), z));
  const Real tail = product(bell, scaled_tail(z));
  return (x < 0 ? tail : Real(1) - tail) + product(product(x, bell), Real(0.39894228040143267794));
}

template <class Real>
RAD_HD Real gelu_tanh_derivative(Real any) {
  const Real x = clamped(any, -Farthest<Real>::kNormal, Farthest<Real>::kNormal);
  const Real square = product(x, x), twice = Real(1.5957691216057307117);  // 2 sqrt(2 / pi)
  const Real s = logistic(product(product(twice, x), affine(Real(0.044715), square, Real(1))));
  const Real slope = product(twice, affine(Real(0.134145), square, Real(1)));
  return s + product(product(x, slope), product(s, Real(1) - s));
}

template <class Real>
RAD_HD Real silu_derivative(Real any) {
  const Real x = clamped(any, -Farthest<Real>::kLogistic, Farthest<Real>::kLogistic), s = logistic(x);
  return product(s, affine(x, Real(1) - s, Real(1)));
}

// With e = exp(x) and n = e (e + 2), tanh(softplus(x)) = n / (n + 2). Beyond the right end n / (n + 2) is 1.
template <class Real>
RAD_HD Real mish_derivative(Real any) {
  const Real x = clamped(any, -Farthest<Real>::kLogistic, Farthest<Real>::kMish), small = exp_minus_abs(x);
  const Real e = x < 0 ? small : Real(1) / small;
  const Real n = product(e, e + Real(2)), wide = n + Real(2);
  return n / wide + product(product(Real(4), x), product(e, Real(1) + e)) / product(wide, wide);
}

// s (1 - s) of the logistic s(x), without its cancellation.
template <class Real>
RAD_HD Real logistic_derivative(Real x) {
  const Real e = exp_minus_abs(x), sum = Real(1) + e;
  return e / product(sum, sum);
}

template <class Real>
RAD_HD Real hardswish_derivative(Real x) {
  const Real line = x / Real(3) + Real(0.5);
  return x <= Real(-3) ? Real(0) : x >= Real(3) ? Real(1) : line;
}

// F fixed at compile time, so that a loop over elements has no branch.
template <Function F, class Real>
RAD_HD Real derivative(Real x, Real a, Real b, Real c) {
  if constexpr (F == Function::kGelu) return gelu_derivative(x);
  if constexpr (F == Function::kGeluTanh) return gelu_tanh_derivative(x);
  if constexpr (F == Function::kSilu) return silu_derivative(x);
  if constexpr (F == Function::kMish) return mish_derivative(x);
  if constexpr (F == Function::kTanh) return product(Real(4), logistic_derivative(product(Real(2), x)));
  if constexpr (F == Function::kSigmoid) return logistic_derivative(x);
  if constexpr (F == Function::kLogSigmoid) return logistic(-x);
  if constexpr (F == Function::kSoftplus) {
    const Real z = product(x, a), s = logistic(z);
    return z > b ? Real(1) : s;
  }
  if constexpr (F == Function::kElu) {
    const Real curve = product(product(product(a, b), c), exp_minus_abs(product(x, c)));
    return x <= 0 ? curve : b;
  }
  if constexpr (F == Function::kHardswish) return hardswish_derivative(x);
  if constexpr (F == Function::kRelu) return x <= 0 ? Real(0) : x - x + Real(1);
}

// f(std::integral_constant<Function, F>) for the function that `function` names; false for a number that
// names none.
template <Function F>
struct FunctionTag {
  static constexpr Function value = F;
};
template <class Body>
RAD_HD bool visit_function(Function function, const Body& body) {
#define RAD_CASE(F) \
  case F:           \
    return body(FunctionTag<F>{}), true;
  switch (function) {
    RAD_CASE(Function::kGelu)
    RAD_CASE(Function::kGeluTanh)
    RAD_CASE(Function::kSilu)
    RAD_CASE(Function::kMish)
    RAD_CASE(Function::kTanh)
    RAD_CASE(Function::kSigmoid)
    RAD_CASE(Function::kLogSigmoid)
    RAD_CASE(Function::kSoftplus)
    RAD_CASE(Function::kElu)
    RAD_CASE(Function::kHardswish)
    RAD_CASE(Function::kRelu)
  }
#undef RAD_CASE
  return false;
}

// The least and the greatest derivative, rounded outwards by more than the error of its evaluation: a value
// beyond the last code would be cut off, and that is bias.
struct Range {
  double lo, hi;
};
inline Range derivative_range(const Activation& f) {
  constexpr double kMargin = 4e-6;
  switch (f.function) {
    case Function::kGelu:
      return {-0.128904146 - kMargin, 1.128904146 + kMargin};
    case Function::kGeluTanh:
      return {-0.128993069 - kMargin, 1.128993069 + kMargin};
    case Function::kSilu:
      return {-0.099839321 - kMargin, 1.099839321 + kMargin};
    case Function::kMish:
      return {-0.112526123 - kMargin, 1.088498162 + kMargin};
    case Function::kSigmoid:
      return {0, 0.25 + kMargin};
    case Function::kElu: {
      const double curve = f.a * f.b * f.c, least = curve < f.b ? curve : f.b,
                   most = curve < f.b ? f.b : curve;
      return {(least < 0 ? least : 0) * (1 + kMargin), (most > 0 ? most : 0) * (1 + kMargin)};
    }
    case Function::kHardswish:
      return {-0.5 - kMargin, 1.5 + kMargin};
    default:
      return {0, 1 + kMargin};
  }
}

// How a function's derivatives are coded.
template <class Real>
Dither<Real> derivative_dither(const Activation& f, int bits) {
  const Range range = derivative_range(f);
  return {static_cast<Real>(range.lo), static_cast<Real>(Dither<double>::step_for(range.lo, range.hi, bits)),
          bits};
}

// Codes, eight elements to `bits` bytes, then the trailer; zeros in between.
struct DerivativeLayout {
  int64_t codes, trailer, bytes;

  DerivativeLayout(int64_t n, int64_t bits)
      : codes((n + 7) / 8 * bits), trailer(align_plane(codes)), bytes(trailer + int64_t{sizeof(Trailer)}) {}
};

}  // namespace rad
