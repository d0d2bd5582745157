// exp, the logistic function and the tail of the normal distribution from operations that are rounded alike
// everywhere, in a fixed order, so that every device has the same bits. Relative errors: exp 3e-7 in fp32,
// 1e-15 in fp64; absolute error of the distribution, in fp64, 1e-15.
#pragma once
#include "core/dither.h"

namespace rad {

// a x + b: in fp32 one rounding, in fp64 two.
RAD_HD float affine(float a, float x, float b) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, x, b);
#else
  return __builtin_fmaf(a, x, b);
#endif
}
RAD_HD double affine(double a, double x, double b) { return product(a, x) + b; }

// (..(first s + second) s + ..) s + last
template <class Real>
RAD_HD Real horner(Real, Real total) {
  return total;
}
template <class Real, class... Rest>
RAD_HD Real horner(Real s, Real total, Real next, Rest... rest) {
  return horner(s, affine(total, s, next), rest...);
}

// NaN gives `least`.
template <class Real>
RAD_HD Real clamped(Real x, Real least, Real most) {
#if defined(__CUDA_ARCH__)
  return fmin(fmax(x, least), most);
#else
  const Real above = x > least ? x : least;
  return above < most ? above : most;
#endif
}

template <class Real>
struct Exponential;

template <>
struct Exponential<float> {
  static constexpr float kLeast = -87.0f;

  // exp(x) for x in [kLeast, 0]. Adding 3 * 2^22 rounds to an integer, which is left in the low bits.
  RAD_HD static float of(float x) {
    const float shifted = affine(1.44269502f, x, 12582912.0f), n = shifted - 12582912.0f;
    const float r = affine(1.92596303e-8f, x, affine(1.44269502f, x, -n));
    const float p = horner(r, 0.000153458124f, 0.00133999309f, 0.00961848907f, 0.0555032864f, 0.240226462f,
                           0.693147182f, 1.0f);
    return bits_float(float_bits(p) + (float_bits(shifted) << 23));
  }
};

template <>
struct Exponential<double> {
  static constexpr double kLeast = -708.0;

  RAD_HD static uint64_t bits(double f) {
#if defined(__CUDA_ARCH__)
    return static_cast<uint64_t>(__double_as_longlong(f));
#else
    uint64_t u;
    std::memcpy(&u, &f, 8);
    return u;
#endif
  }
  RAD_HD static double number(uint64_t u) {
#if defined(__CUDA_ARCH__)
    return __longlong_as_double(static_cast<long long>(u));
#else
    double f;
    std::memcpy(&f, &u, 8);
    return f;
#endif
  }

  // The same with 3 * 2^51.
  RAD_HD static double of(double x) {
    const double shifted = affine(1.4426950408889634, x, 6755399441055744.0),
                 n = shifted - 6755399441055744.0;
    const double r = (x - product(n, 6.93147180369123816490e-01)) - product(n, 1.90821492927058770002e-10);
    const double p = horner(r, 1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                            1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0);
    return product(p, number((bits(shifted) - bits(6755399441055744.0) + 1023u) << 52));
  }
};

// exp(-|x|), at least the smallest that Exponential knows.
template <class Real>
RAD_HD Real exp_minus_abs(Real x) {
  return Exponential<Real>::of(clamped(x < 0 ? x : -x, Exponential<Real>::kLeast, Real(0)));
}

// 1 / d for d in [1, 2]. In fp32 two steps of Newton's from a quadratic fit: error 1e-7.
RAD_HD float reciprocal(float d) {
  float r = horner(d, 0.323232234f, -1.45454526f, 2.12121201f);
  r = affine(r, affine(-d, r, 1.0f), r);
  return affine(r, affine(-d, r, 1.0f), r);
}
RAD_HD double reciprocal(double d) { return 1.0 / d; }

template <class Real>
RAD_HD Real logistic(Real x) {
  const Real e = exp_minus_abs(x);
  return product(x < 0 ? e : Real(1), reciprocal(Real(1) + e));
}

// Q(z) e^(z^2 / 2) for z >= 0, with Q the upper tail: t times a Chebyshev fit in s = 2t - 1, t = 1/(1 + .3
// z).
RAD_HD double scaled_tail(double z) {
  const double t = 1.0 / affine(0.3, z, 1.0), s = affine(2.0, t, -1.0);
  return product(
      t,
      horner(s, 8.0598895501682778e-11, -7.48578362274413185e-10, 4.10580748744374267e-10,
             5.90513107764250915e-9, -9.46728041989679883e-9, -1.76661952813784685e-8, 6.12163646236269619e-8,
             -8.03585071202874323e-9, -2.32542221538930218e-7, 3.53289516791310927e-7, 5.19089181486172454e-7,
             -2.24967046504670782e-6, 2.44358686678371886e-7, 1.07312974500097716e-5, -1.11255335274868279e-5,
             -4.97463616560859424e-5, 9.01399153973661517e-5, 2.83636918773888535e-4, -5.75642515952886829e-4,
             -2.42389654823472171e-3, 1.81713579549289354e-3, 2.77603654737308331e-2, 8.65496374184617498e-2,
             1.64579484086162698e-1, 2.21970613834432797e-1));
}

}  // namespace rad
