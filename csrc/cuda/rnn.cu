#include "cuda/rnn_block.cuh"

namespace rad::cuda {
namespace {

// gates += inputs in columns [0, columns).
template <class T>
__global__ void __launch_bounds__(kThreads) add_inputs(RnnForwardArgs args, int64_t columns, int64_t stride) {
  const int64_t n = args.rows * columns, step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < n; i += step) {
    const int64_t at = i / columns * stride + i % columns;
    T* gates = static_cast<T*>(args.gates) + at;
    *gates = narrow<T>(widen(*gates) + widen(static_cast<const T*>(args.inputs)[at]));
  }
}

template <class T>
struct Forward {
  using Real = Accumulate<T>;
  RnnForwardArgs args;
  RnnFactorStore<T> factors;
  int64_t stride;

  // The state becomes `h`.
  RAD_DEVICE void move(const RnnOctet& octet, const Real* h) const {
    T* state = static_cast<T*>(args.h) + octet.first;
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      if (e >= octet.count) continue;
      if (args.kept) static_cast<T*>(args.kept)[octet.first + e] = state[e];
      state[e] = narrow<T>(h[e]);
    }
    if (args.y) octet.store<T>(h, args.y, args.y_stride, 0);
  }

  RAD_DEVICE void relu(const RnnOctet& octet) const {
    Real h[kOctet], inputs[kOctet];
    octet.load<T>(args.gates, stride, 0, h);
    octet.load<T>(args.inputs, stride, 0, inputs);
    unsigned bits = 0;
#pragma unroll
    for (int e = 0; e < kOctet; ++e) {
      const Real sum = RoundTo<T>{}(h[e] + inputs[e]);
      h[e] = sum < 0 ? Real(0) : sum;
      if (e < octet.count && !(sum <= 0)) bits |= 1u << e;
    }
    move(octet, h);
    if (args.factors.codes && octet.first / kOctet < factors.step_bytes)
      static_cast<uint8_t*>(args.factors.codes)[octet.first / kOctet] = static_cast<uint8_t>(bits);
  }

  RAD_DEVICE void tanh(const RnnOctet& octet) const {
    Real h[kOctet], slope[kOctet];
    octet.load<T>(args.gates, stride, 0, h);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) slope[e] = tanh_slope(h[e]);
    move(octet, h);
    factors.store(0, octet, slope);
  }

  RAD_DEVICE void lstm_state(const RnnOctet& octet) const {
    Real i[kOctet], f[kOctet], g[kOctet], c[kOctet], p[kOctet];
    octet.load<T>(args.gates, stride, 0, i);
    octet.load<T>(args.gates, stride, 1, f);
    octet.load<T>(args.gates, stride, 2, g);
    octet.load<T>(args.c, octet.hidden, 0, c);
#pragma unroll
    for (const int stream : {0, 1, 2, 5}) {
#pragma unroll
      for (int e = 0; e < kOctet; ++e) p[e] = lstm_factor(stream, i[e], f[e], g[e], c[e]);
      factors.store(stream, octet, p);
    }
#pragma unroll
    for (int e = 0; e < kOctet; ++e) p[e] = lstm_cell(i[e], f[e], g[e], c[e], RoundTo<T>{});
    octet.store<T>(p, args.c, octet.hidden, 0);
  }

  RAD_DEVICE void lstm_output(const RnnOctet& octet) const {
    Real o[kOctet], t[kOctet], p[kOctet];
    octet.load<T>(args.gates, stride, 3, o);
    octet.load<T>(args.tanh_c, octet.hidden, 0, t);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) p[e] = product(o[e], t[e]);
    move(octet, p);
#pragma unroll
    for (const int stream : {3, 4}) {
#pragma unroll
      for (int e = 0; e < kOctet; ++e) p[e] = lstm_output_factor(stream, o[e], t[e]);
      factors.store(stream, octet, p);
    }
  }

  RAD_DEVICE void gru_sum(const RnnOctet& octet) const {
    Real r[kOctet], q[kOctet], n[kOctet];
    octet.load<T>(args.gates, stride, 0, r);
    octet.load<T>(args.gates, stride, 2, q);
    octet.load<T>(args.inputs, stride, 2, n);
#pragma unroll
    for (int e = 0; e < kOctet; ++e) n[e] += RoundTo<T>{}(product(q[e], r[e]));
    octet.store<T>(n, args.inputs, stride, 2);
  }

  RAD_DEVICE void gru_state(const RnnOctet& octet) const {
    Real r[kOctet], z[kOctet], q[kOctet], n[kOctet], h[kOctet], p[kOctet];
    octet.load<T>(args.gates, stride, 0, r);
    octet.load<T>(args.gates, stride, 1, z);
    octet.load<T>(args.gates, stride, 2, q);
    octet.load<T>(args.inputs, stride, 2, n);
    octet.load<T>(args.h, octet.hidden, 0, h);
#pragma unroll
    for (int stream = 0; stream < 5; ++stream) {
#pragma unroll
      for (int e = 0; e < kOctet; ++e) p[e] = gru_factor(stream, r[e], z[e], n[e], q[e], h[e]);
      factors.store(stream, octet, p);
    }
#pragma unroll
    for (int e = 0; e < kOctet; ++e) p[e] = gru_output(z[e], n[e], h[e], RoundTo<T>{});
    move(octet, p);
  }
};

// A template parameter, so that each stage has the registers that it needs.
// One block may take all registers of a multiprocessor: the compiler's own choice spills on some.
template <class T, RnnCell kCell, int kStage>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(Forward<T> f) {
  const int64_t elements = f.args.rows * f.args.hidden, groups = (elements + kGroup - 1) / kGroup;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTeams;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * kTeams + threadIdx.x / kTeam; g < groups; g += step) {
    const RnnOctet octet(g, elements, f.args.hidden);
    if constexpr (kCell == RnnCell::kRelu)
      f.relu(octet);
    else if constexpr (kCell == RnnCell::kTanh)
      f.tanh(octet);
    else if constexpr (kCell == RnnCell::kLstm && kStage == 1)
      f.lstm_state(octet);
    else if constexpr (kCell == RnnCell::kLstm)
      f.lstm_output(octet);
    else if constexpr (kStage == 1)
      f.gru_sum(octet);
    else
      f.gru_state(octet);
  }
}

LaunchConfig over_groups(int64_t elements, void* stream) {
  return {dim3(blocks_for((elements + kGroup - 1) / kGroup, kTeams)), dim3(kThreads), 0, stream};
}

template <class T>
int forward(const RnnForwardArgs& args) {
  const int64_t n = args.rows * args.hidden, stride = rnn_gates(args.cell) * args.hidden;
  if (args.stage == 0 && args.cell != RnnCell::kRelu) {
    const int64_t columns = args.cell == RnnCell::kGru ? 2 * args.hidden : stride;
    return launch(add_inputs<T>, over_items(args.rows * columns, args.exec.stream), args, columns, stride);
  }
  const Forward<T> f{args, RnnFactorStore<T>(args.factors, args.cell, args.dtype, n), stride};
  const auto config = over_groups(n, args.exec.stream);
  switch (args.cell) {
    case RnnCell::kRelu:
      return launch(forward_kernel<T, RnnCell::kRelu, 0>, config, f);
    case RnnCell::kTanh:
      return launch(forward_kernel<T, RnnCell::kTanh, 1>, config, f);
    case RnnCell::kLstm:
      return args.stage == 1 ? launch(forward_kernel<T, RnnCell::kLstm, 1>, config, f)
                             : launch(forward_kernel<T, RnnCell::kLstm, 2>, config, f);
    case RnnCell::kGru:
      return args.stage == 1 ? launch(forward_kernel<T, RnnCell::kGru, 1>, config, f)
                             : launch(forward_kernel<T, RnnCell::kGru, 2>, config, f);
  }
  return kInvalidValue;
}

// ---- backward
// ----------------------------------------------------------------------------------------------

template <class T>
struct Backward {
  using Real = Accumulate<T>;
  RnnBackwardArgs args;
  RnnFactorStore<T> factors;
  int64_t stride;

  RAD_DEVICE Real total_dh(const RnnOctet& octet, int e, int64_t row, int64_t column) const {
    const Real dh = widen(static_cast<const T*>(args.dh)[octet.first + e]);
    if (!args.dy) return dh;
    return RoundTo<T>{}(dh + widen(static_cast<const T*>(args.dy)[row * args.dy_stride + column]));
  }

  template <RnnCell kCell>
  RAD_DEVICE void run(const RnnOctet& octet) const {
    constexpr int kStreams = kCell == RnnCell::kLstm ? 6 : kCell == RnnCell::kGru ? 5 : 1;
    constexpr int kGates = kCell == RnnCell::kLstm ? 4 : kCell == RnnCell::kGru ? 3 : 1;
    if (octet.count == 0) return;
    StoredFactor<T> p[kStreams];
    unsigned mask = 0;
    if constexpr (kCell == RnnCell::kRelu) {
      mask = static_cast<const uint8_t*>(args.factors.codes)[octet.first / kOctet];
    } else {
#pragma unroll
      for (int s = 0; s < kStreams; ++s) p[s] = factors.load(s, octet);
    }
    int64_t row = octet.row, column = octet.column;
#pragma unroll 1  // six decoders at once leave no registers for fp64
    for (int e = 0; e < octet.count; ++e) {
      Real dh = total_dh(octet, e, row, column), factor[kStreams], gates[kGates], inputs[3];
      if constexpr (kCell != RnnCell::kRelu) {
#pragma unroll
        for (int s = 0; s < kStreams; ++s) factor[s] = p[s].at(e);
      }
      if constexpr (kCell == RnnCell::kRelu) {
        gates[0] = mask >> e & 1u ? dh : Real(0);
      } else if constexpr (kCell == RnnCell::kTanh) {
        gates[0] = product(dh, factor[0]);
      } else if constexpr (kCell == RnnCell::kLstm) {
        Real dc = widen(static_cast<T*>(args.dc)[octet.first + e]);
        lstm_backward(factor, dh, &dc, gates, RoundTo<T>{});
        static_cast<T*>(args.dc)[octet.first + e] = narrow<T>(dc);
      } else {
        gru_backward(factor, &dh, gates, inputs, RoundTo<T>{});
        static_cast<T*>(args.dh)[octet.first + e] = narrow<T>(dh);
      }
      const int64_t at = row * stride + column;
#pragma unroll
      for (int g = 0; g < kGates; ++g) {
        static_cast<T*>(args.dgates)[at + g * octet.hidden] = narrow<T>(gates[g]);
        if constexpr (kCell == RnnCell::kGru)
          static_cast<T*>(args.dinputs)[at + g * octet.hidden] = narrow<T>(inputs[g]);
      }
      if (++column == octet.hidden) column = 0, ++row;
    }
  }
};

template <class T, RnnCell kCell>
__global__ void __launch_bounds__(kThreads) backward_kernel(Backward<T> b) {
  const int64_t elements = b.args.rows * b.args.hidden, groups = (elements + kGroup - 1) / kGroup;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kTeams;
  for (int64_t g = static_cast<int64_t>(blockIdx.x) * kTeams + threadIdx.x / kTeam; g < groups; g += step)
    b.template run<kCell>(RnnOctet(g, elements, b.args.hidden));
}

template <class T>
int backward(const RnnBackwardArgs& args) {
  const int64_t n = args.rows * args.hidden;
  const Backward<T> b{args, RnnFactorStore<T>(args.factors, args.cell, args.dtype, n),
                      rnn_gates(args.cell) * args.hidden};
  const auto config = over_groups(n, args.exec.stream);
  switch (args.cell) {
    case RnnCell::kRelu:
      return launch(backward_kernel<T, RnnCell::kRelu>, config, b);
    case RnnCell::kTanh:
      return launch(backward_kernel<T, RnnCell::kTanh>, config, b);
    case RnnCell::kLstm:
      return launch(backward_kernel<T, RnnCell::kLstm>, config, b);
    case RnnCell::kGru:
      return launch(backward_kernel<T, RnnCell::kGru>, config, b);
  }
  return kInvalidValue;
}

}  // namespace

int rnn_forward(const RnnForwardArgs& args) {
  return visit_dtype(args.dtype, [&](auto tag) { return forward<typename decltype(tag)::type>(args); });
}

int rnn_backward(const RnnBackwardArgs& args) {
  return visit_dtype(args.dtype, [&](auto tag) { return backward<typename decltype(tag)::type>(args); });
}

}  // namespace rad::cuda
