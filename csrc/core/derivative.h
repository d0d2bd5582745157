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
  static constexpr Real kNormal = 37;                              // so is exp(-x^2 / 2)
  static constexpr Real kMish = sizeof(Real) == 4 ? 20 : 40;       // exp(4 x) does not overflow
};

// 1/2 + x p(2 (x / end)^2 - 1), x cut off at +-end, p given from its highest power.
template <class... Coefficients>
RAD_HD float odd_polynomial(float any, float end, float scale, Coefficients... p) {
  const float x = clamped(any, -end, end);
  return affine(x, horner(affine(product(x, x), scale, -1.0f), p...), 0.5f);
}

// In fp32 the derivatives of both GELUs, less 1/2, are odd polynomials, fitted with errors of 2e-7 and 4e-7;
// with all roundings 7e-7.
RAD_HD float gelu_derivative(float x) {
  return odd_polynomial(x, 5.5f, 2 / (5.5f * 5.5f), -0.00490987627f, 0.0121202599f, -0.00642487081f,
                        0.00410066685f, -0.0278236754f, 0.0495664999f, -0.0530860871f, 0.0606563948f,
                        -0.0729194954f, 0.0753351897f, -0.0688571483f, 0.060187228f, -0.0537258238f,
                        0.053670872f, -0.0657401383f, 0.128759176f);
}
RAD_HD float gelu_tanh_derivative(float x) {
  return odd_polynomial(x, 5.25f, 2 / (5.25f * 5.25f), -0.00938072614f, 0.0079013221f, 0.0366645753f,
                        -0.0422795713f, -0.0243146531f, 0.0223989766f, 0.0486136414f, -0.0629380196f,
                        0.0468898676f, -0.062203411f, 0.0815153867f, -0.0819452032f, 0.0725103617f,
                        -0.0626214668f, 0.0590803772f, -0.0696374476f, 0.134984061f);
}

RAD_HD double gelu_derivative(double any) {
  const double x = clamped(any, -Farthest<double>::kNormal, Farthest<double>::kNormal), z = x < 0 ? -x : x;
  const double bell = Exponential<double>::of(product(product(-0.5, z), z));
  const double tail = product(bell, scaled_tail(z));
  return (x < 0 ? tail : 1.0 - tail) + product(product(x, bell), 0.39894228040143267794);
}
RAD_HD double gelu_tanh_derivative(double any) {
  const double x = clamped(any, -Farthest<double>::kNormal, Farthest<double>::kNormal);
  const double square = product(x, x), twice = 1.5957691216057307117;  // 2 sqrt(2 / pi)
  const double s = logistic(product(product(twice, x), affine(0.044715, square, 1.0)));
  const double slope = product(twice, affine(0.134145, square, 1.0));
  return s + product(product(x, slope), product(s, 1.0 - s));
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
  const Real e = exp_minus_abs(x), r = reciprocal(Real(1) + e);
  return product(e, product(r, r));
}

template <class Real>
RAD_HD Real hardswish_derivative(Real x) {
  const Real line = x / Real(3) + Real(0.5);
  return x > Real(-3) ? (x < Real(3) ? line : Real(1)) : Real(0);
}

// F fixed at compile time, so that a loop over elements has no branch. A number for NaN too: callers look for
// it.
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
  if constexpr (F == Function::kRelu) return x > 0 ? Real(1) : Real(0);
}

// torch's ELU has the slope of positive numbers at NaN.
constexpr bool spoilt_by_nan(Function f) { return f != Function::kElu; }

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

// The least and the greatest derivative, rounded outwards by more than the error of its evaluation and of its
// place among the codes: none lies beyond the last code.
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

// Codes within a range that is known beforehand and holds every value, so that none needs a limit: the whole
// part of (value - lo) / step + u + 1/2, from a product with 1 / step. Decoded as any dither.
template <class Real>
struct RangeCode {
  Dither<Real> dither;
  Real inverse, shift;

  RangeCode(double lo, double step, int bits)
      : dither(static_cast<Real>(lo), static_cast<Real>(step), bits),
        inverse(static_cast<Real>(1 / step)),
        shift(static_cast<Real>(-lo / step)) {}

  RAD_HD Real place(Real value) const { return affine(value, inverse, shift); }
  RAD_HD int encode(Real value, uint32_t noise) const {
    return static_cast<int>(place(value) + Dither<Real>::fraction(noise));
  }
};

// How a function's derivatives are coded.
template <class Real>
RangeCode<Real> derivative_code(const Activation& f, int bits) {
  const Range range = derivative_range(f);
  return {range.lo, Dither<double>::step_for(range.lo, range.hi, bits), bits};
}

// Codes, eight elements to `bits` bytes, then the trailer; zeros in between.
struct DerivativeLayout {
  int64_t codes, trailer, bytes;

  DerivativeLayout(int64_t n, int64_t bits)
      : codes((n + 7) / 8 * bits), trailer(align_plane(codes)), bytes(trailer + int64_t{sizeof(Trailer)}) {}
};

}  // namespace rad
