// Per-parameter values and sums of consecutive elements of a normalised tensor.
#pragma once
#include <algorithm>

#include "core/norm.h"

namespace rad::cpu {

// body(parameter, begin, count) over the pieces of elements [first, first + size): one parameter each, or,
// where every element has its own (inner = 1), consecutive parameters.
template <class Body>
void each_piece(const NormShape& s, int64_t first, int64_t size, const Body& body) {
  int64_t param = norm_param(s, first), left = s.inner - first % s.inner;
  for (int64_t at = 0; at < size;) {
    const int64_t count = std::min(size - at, s.inner == 1 ? s.params - param : left);
    body(param, at, count);
    at += count;
    if (s.inner == 1) {
      param += count;
    } else {
      left -= count;
      if (left == 0) ++param, left = s.inner;
    }
    if (param == s.params) param = 0;
  }
}

template <class Real>
void spread_params(const NormShape& s, const Real* values, int64_t first, int64_t size, Real* out) {
  each_piece(s, first, size, [&](int64_t param, int64_t at, int64_t count) {
    if (s.inner == 1)
      std::copy(values + param, values + param + count, out + at);
    else
      std::fill(out + at, out + at + count, values[param]);
  });
}

template <class Real>
void add_to_params(const NormShape& s, const Real* values, int64_t first, int64_t size, Real* sums) {
  each_piece(s, first, size, [&](int64_t param, int64_t at, int64_t count) {
    if (s.inner == 1) {
      for (int64_t i = 0; i < count; ++i) sums[param + i] += values[at + i];
    } else {
      constexpr int kParts = 16;
      Real part[kParts] = {}, total = 0;
      int64_t i = 0;
      for (; i + kParts <= count; i += kParts)
        for (int j = 0; j < kParts; ++j) part[j] += values[at + i + j];
      for (; i < count; ++i) total += values[at + i];
      for (const Real value : part) total += value;
      sums[param] += total;
    }
  });
}

}  // namespace rad::cpu
