// Arithmetic that C++ has no words for. As in ptx.cuh every function has a device and a host branch, and a
// test of its own (tests/cpp/test_coder.cu).
#pragma once
#include <cmath>

#include "cuda/ptx.cuh"

namespace rad::cuda {

// a + b, rounded toward zero.
RAD_DEVICE float add_toward_zero(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rz(a, b);
#else
  const double sum = static_cast<double>(a) + b;
  const auto nearest = static_cast<float>(sum);
  return fabs(static_cast<double>(nearest)) > fabs(sum) ? nextafterf(nearest, 0.0f) : nearest;
#endif
}

// a * b, rounded toward zero.
RAD_DEVICE float multiply_toward_zero(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rz(a, b);
#else
  const double exact = static_cast<double>(a) * b;
  const auto nearest = static_cast<float>(exact);
  return fabs(static_cast<double>(nearest)) > fabs(exact) ? nextafterf(nearest, 0.0f) : nearest;
#endif
}

// 1 / x, rounded correctly where x and its reciprocal are normal: what a division compiles to, without its
// question whether they are.
RAD_DEVICE float normal_reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float guess;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(guess) : "f"(x));
  return __fmaf_rn(guess, -__fmaf_rn(x, guess, -1.0f), guess);
#else
  return 1.0f / x;
#endif
}

// The lesser and the greater of two numbers; NaN where one is NaN.
RAD_DEVICE float min_or_nan(float a, float b) {
#ifdef __CUDA_ARCH__
  float least;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(a), "f"(b));
  return least;
#else
  return a < b || a != a ? a : b;
#endif
}
RAD_DEVICE float max_or_nan(float a, float b) {
#ifdef __CUDA_ARCH__
  float greatest;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(greatest) : "f"(a), "f"(b));
  return greatest;
#else
  return a > b || a != a ? a : b;
#endif
}
RAD_DEVICE double min_or_nan(double a, double b) { return a < b || a != a ? a : b; }
RAD_DEVICE double max_or_nan(double a, double b) { return a > b || a != a ? a : b; }

// The value itself, unknown to the optimiser: a loop that branches on it is not cloned for each value.
RAD_DEVICE int opaque(int value) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(value));
#endif
  return value;
}

RAD_DEVICE uint64_t multiply_wide(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return static_cast<uint64_t>(a) * b;
#endif
}

// Four of the eight bytes of (high, low), chosen by the hexadecimal digits of `selector`, lowest first.
RAD_DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
#ifdef __CUDA_ARCH__
  return __byte_perm(low, high, selector);
#else
  const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<uint32_t>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xFF) << (8 * i);
  return result;
#endif
}

}  // namespace rad::cuda
