// The maths of one time step, one IEEE rounding an operation (docs/maths.md, recurrent layers). `round` is
// the rounding to the layer's dtype that torch makes after every operation.
#pragma once
#include "core/dither.h"
#include "kernels.h"

namespace rad {

RAD_HD int rnn_gates(RnnCell cell) { return cell == RnnCell::kLstm ? 4 : cell == RnnCell::kGru ? 3 : 1; }

constexpr int kMaxRnnStreams = 6;

// Streams of factors; of these the last `ranged` have no range that is known beforehand.
struct RnnStreams {
  int count, ranged;
};
RAD_HD RnnStreams rnn_streams(RnnCell cell) {
  switch (cell) {
    case RnnCell::kLstm:
      return {6, 1};
    case RnnCell::kGru:
      return {5, 2};
    default:
      return {1, 0};
  }
}

// Bits of one stored factor.
RAD_HD int64_t rnn_factor_bits(RnnCell cell, int bits, DType dtype) {
  if (cell == RnnCell::kRelu) return 1;
  if (bits) return bits;
  return dtype == DType::kF64 ? 64 : dtype == DType::kF32 ? 32 : 16;
}

// Bytes of one stream's codes of a step with n elements.
RAD_HD int64_t rnn_step_bytes(int64_t n, int64_t factor_bits) { return (n * factor_bits + 63) / 64 * 8; }

RAD_HD Role rnn_role(int stream) {
  return static_cast<Role>(static_cast<uint32_t>(Role::kRecurrent) + static_cast<uint32_t>(stream));
}

// Products of a sigmoid's derivative lie in [-1/4, 1/4], other factors of known range in [0, 1].
RAD_HD bool rnn_stream_is_signed(RnnCell cell, int stream) {
  return cell == RnnCell::kLstm && (stream == 1 || stream == 4);
}
template <class Real>
RAD_HD Dither<Real> rnn_fixed_dither(RnnCell cell, int stream, int bits) {
  const bool is_signed = rnn_stream_is_signed(cell, stream);
  const Real lo = is_signed ? Real(-0.25) : Real(0), hi = is_signed ? Real(0.25) : Real(1);
  return Dither<Real>(lo, static_cast<Real>(Dither<Real>::step_for(lo, hi, bits)), bits);
}

// s (1 - s), the derivative of a sigmoid, and 1 - t^2, that of a hyperbolic tangent, from their values.
template <class Real>
RAD_HD Real sigmoid_slope(Real s) {
  return product(s, Real(1) - s);
}
template <class Real>
RAD_HD Real tanh_slope(Real t) {
  return Real(1) - product(t, t);
}

// lstm, stage 1. Streams: 0 f, 1 g i (1 - i), 2 i (1 - g^2), 5 c f (1 - f).
template <class Real, class Round>
RAD_HD Real lstm_cell(Real i, Real f, Real g, Real c, const Round& round) {
  return round(round(product(f, c)) + round(product(i, g)));
}
template <class Real>
RAD_HD Real lstm_factor(int stream, Real i, Real f, Real g, Real c) {
  switch (stream) {
    case 0:
      return f;
    case 1:
      return product(g, sigmoid_slope(i));
    case 2:
      return product(i, tanh_slope(g));
    default:
      return product(c, sigmoid_slope(f));
  }
}
// lstm, stage 2, with t = tanh c. Streams: 3 o (1 - t^2), 4 t o (1 - o).
template <class Real>
RAD_HD Real lstm_output_factor(int stream, Real o, Real t) {
  return stream == 3 ? product(o, tanh_slope(t)) : product(t, sigmoid_slope(o));
}

// gru, stage 2, with q = W_hn h + b_hn. Streams: 0 (1 - z)(1 - n^2), 1 r, 2 z, 3 (h - n) z (1 - z),
// 4 q r (1 - r).
template <class Real, class Round>
RAD_HD Real gru_output(Real z, Real n, Real h, const Round& round) {
  return round(round(product(round(h - n), z)) + n);
}
template <class Real>
RAD_HD Real gru_factor(int stream, Real r, Real z, Real n, Real q, Real h) {
  switch (stream) {
    case 0:
      return product(Real(1) - z, tanh_slope(n));
    case 1:
      return r;
    case 2:
      return z;
    case 3:
      return product(h - n, sigmoid_slope(z));
    default:
      return product(q, sigmoid_slope(r));
  }
}

// Backward from factors p [stream]; gradients of the earlier states replace those of the later ones.
template <class Real, class Round>
RAD_HD void lstm_backward(const Real* p, Real dh, Real* dc, Real* gates, const Round& round) {
  const Real total = round(*dc + round(product(dh, p[3])));
  gates[0] = round(product(total, p[1]));
  gates[1] = round(product(total, p[5]));
  gates[2] = round(product(total, p[2]));
  gates[3] = round(product(dh, p[4]));
  *dc = round(product(total, p[0]));
}
template <class Real, class Round>
RAD_HD void gru_backward(const Real* p, Real* dh, Real* gates, Real* inputs, const Round& round) {
  const Real n = round(product(*dh, p[0]));
  gates[0] = inputs[0] = round(product(n, p[4]));
  gates[1] = inputs[1] = round(product(*dh, p[3]));
  gates[2] = round(product(n, p[1]));
  inputs[2] = n;
  *dh = round(product(*dh, p[2]));
}

}  // namespace rad
