// Codes of probabilities and their buffer (docs/maths.md, cross-entropy).
#pragma once
#include "core/exponential.h"
#include "core/layout.h"

namespace rad {

// exp(x) for x <= 0; what is no normal number is 0. NaN stays NaN.
template <class Real>
RAD_HD Real probability(Real log_p) {
  const Real p = Exponential<Real>::of(clamped(log_p, Exponential<Real>::kLeast, Real(0)));
  return log_p < Exponential<Real>::kLeast ? Real(0) : log_p == log_p ? p : log_p;
}

// Codes, eight elements to `bits` bytes; the groups' steps, bf16; the trailer. Zeros in between.
struct ProbabilityLayout {
  int64_t codes, step, steps_end, trailer, bytes;

  ProbabilityLayout(int64_t n, int64_t bits)
      : codes((n + 7) / 8 * bits),
        step(align_plane(codes)),
        steps_end(step + (n + kGroup - 1) / kGroup * 2),
        trailer(align_plane(steps_end)),
        bytes(trailer + int64_t{sizeof(Trailer)}) {}
};

}  // namespace rad
