#include "cpu/rnn_block.h"

namespace rad::cpu {
namespace {

// Rounds to T and back, as torch does after every operation.
template <class T>
struct RoundTo {
  RAD_HD Accumulate<T> operator()(Accumulate<T> v) const { return widen(narrow<T>(v)); }
};

// ---- forward
// -----------------------------------------------------------------------------------------------

// gates += inputs in columns [0, columns).
template <class T>
void add_inputs(const RnnForwardArgs& args, int64_t columns) {
  const int64_t stride = rnn_gates(args.cell) * args.hidden;
  parallel_for(args.exec, args.rows, grain_for(columns * sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T* gates = static_cast<T*>(args.gates) + r * stride;
      const T* inputs = static_cast<const T*>(args.inputs) + r * stride;
      for (int64_t c = 0; c < columns; ++c) gates[c] = narrow<T>(widen(gates[c]) + widen(inputs[c]));
    }
  });
}

template <class T>
struct Forward {
  using Real = Accumulate<T>;
  const RnnForwardArgs& args;
  const RnnFactorStore<T> factors;
  const int64_t hidden = args.hidden, stride = rnn_gates(args.cell) * args.hidden;
  static constexpr RoundTo<T> round{};

  explicit Forward(const RnnForwardArgs& args_)
      : args(args_), factors(args_.factors, args_.cell, args_.dtype, args_.rows * args_.hidden) {}

  template <class Body>
  void run(const Body& body) const {
    for_each_rnn_block(args.exec, args.rows * hidden, hidden, body);
  }

  // The state becomes `h`.
  void move(const RnnBlock& block, const Real* h) const {
    const int64_t bytes = block.count * static_cast<int64_t>(sizeof(T));
    T* state = static_cast<T*>(args.h) + block.begin;
    if (args.kept) std::memcpy(static_cast<T*>(args.kept) + block.begin, state, bytes);
    for (int64_t i = 0; i < block.count; ++i) state[i] = narrow<T>(h[i]);
    if (args.y) block.store<T>(h, args.y, args.y_stride, 0);
  }

  void relu() const {
    run([&](const RnnBlock& block) {
      const T* gates = static_cast<const T*>(args.gates) + block.begin;
      const T* inputs = static_cast<const T*>(args.inputs) + block.begin;
      Real h[kBlock];
      alignas(8) uint8_t flags[kBlock] = {};
      for (int64_t i = 0; i < block.count; ++i) {
        const Real sum = round(widen(gates[i]) + widen(inputs[i]));
        h[i] = sum < 0 ? Real(0) : sum;
        flags[i] = !(sum <= 0);
      }
      move(block, h);
      if (!args.factors.codes) return;
      uint8_t* bits = static_cast<uint8_t*>(args.factors.codes) + block.begin / 8;
      const int64_t bytes = (block.count + 63) / 64 * 8;
      for (int64_t b = 0; b < bytes; ++b) {
        uint64_t eight;  // one product with a power of two lands each flag in the top byte
        std::memcpy(&eight, flags + 8 * b, 8);
        bits[b] = static_cast<uint8_t>(eight * 0x0102040810204080u >> 56);
      }
    });
  }

  void tanh() const {
    run([&](const RnnBlock& block) {
      Real h[kBlock], slope[kBlock];
      block.load<T>(args.gates, stride, 0, h);
      for (int64_t i = 0; i < block.count; ++i) slope[i] = tanh_slope(h[i]);
      move(block, h);
      factors.store(0, block, slope);
    });
  }

  void lstm_state() const {
    run([&](const RnnBlock& block) {
      Real gate[4][kBlock], c[kBlock], p[kBlock];
      for (int g = 0; g < 3; ++g) block.load<T>(args.gates, stride, g, gate[g]);
      block.load<T>(args.c, hidden, 0, c);
      const auto factor = [&](auto stream) {
        for (int64_t i = 0; i < block.count; ++i)
          p[i] = lstm_factor(decltype(stream)::value, gate[0][i], gate[1][i], gate[2][i], c[i]);
        factors.store(decltype(stream)::value, block, p);
      };
      factor(std::integral_constant<int, 0>{});
      factor(std::integral_constant<int, 1>{});
      factor(std::integral_constant<int, 2>{});
      factor(std::integral_constant<int, 5>{});
      for (int64_t i = 0; i < block.count; ++i)
        p[i] = lstm_cell(gate[0][i], gate[1][i], gate[2][i], c[i], round);
      block.store<T>(p, args.c, hidden, 0);
    });
  }

  void lstm_output() const {
    run([&](const RnnBlock& block) {
      Real o[kBlock], t[kBlock], p[kBlock];
      block.load<T>(args.gates, stride, 3, o);
      block.load<T>(args.tanh_c, hidden, 0, t);
      for (int64_t i = 0; i < block.count; ++i) p[i] = product(o[i], t[i]);
      move(block, p);
      for (int stream = 3; stream <= 4; ++stream) {
        for (int64_t i = 0; i < block.count; ++i) p[i] = lstm_output_factor(stream, o[i], t[i]);
        factors.store(stream, block, p);
      }
    });
  }

  // The sum of n: W_in x + b_in + r (W_hn h + b_hn), in the place of its first part.
  void gru_sum() const {
    run([&](const RnnBlock& block) {
      Real r[kBlock], q[kBlock], n[kBlock];
      block.load<T>(args.gates, stride, 0, r);
      block.load<T>(args.gates, stride, 2, q);
      block.load<T>(args.inputs, stride, 2, n);
      for (int64_t i = 0; i < block.count; ++i) n[i] += round(product(q[i], r[i]));
      block.store<T>(n, args.inputs, stride, 2);
    });
  }

  void gru_state() const {
    run([&](const RnnBlock& block) {
      Real r[kBlock], z[kBlock], q[kBlock], n[kBlock], h[kBlock], p[kBlock];
      block.load<T>(args.gates, stride, 0, r);
      block.load<T>(args.gates, stride, 1, z);
      block.load<T>(args.gates, stride, 2, q);
      block.load<T>(args.inputs, stride, 2, n);
      block.load<T>(args.h, hidden, 0, h);
      for (int stream = 0; stream < rnn_streams(RnnCell::kGru).count; ++stream) {
        for (int64_t i = 0; i < block.count; ++i) p[i] = gru_factor(stream, r[i], z[i], n[i], q[i], h[i]);
        factors.store(stream, block, p);
      }
      for (int64_t i = 0; i < block.count; ++i) p[i] = gru_output(z[i], n[i], h[i], round);
      move(block, p);
    });
  }

  int stage() const {
    switch (args.cell) {
      case RnnCell::kRelu:
        return relu(), 0;
      case RnnCell::kTanh:
        return args.stage == 0 ? add_inputs<T>(args, hidden) : tanh(), 0;
      case RnnCell::kLstm:
        return args.stage == 0   ? add_inputs<T>(args, 4 * hidden)
               : args.stage == 1 ? lstm_state()
                                 : lstm_output(),
               0;
      case RnnCell::kGru:
        return args.stage == 0   ? add_inputs<T>(args, 2 * hidden)
               : args.stage == 1 ? gru_sum()
                                 : gru_state(),
               0;
    }
    return 1;
  }
};

// ---- backward
// ----------------------------------------------------------------------------------------------

template <class T>
struct Backward {
  using Real = Accumulate<T>;
  const RnnBackwardArgs& args;
  const RnnFactorStore<T> factors;
  const int64_t hidden = args.hidden, stride = rnn_gates(args.cell) * args.hidden;
  static constexpr RoundTo<T> round{};

  explicit Backward(const RnnBackwardArgs& args_)
      : args(args_), factors(args_.factors, args_.cell, args_.dtype, args_.rows * args_.hidden) {}

  void load_dh(const RnnBlock& block, Real* dh) const {
    block.load<T>(args.dh, hidden, 0, dh);
    if (!args.dy) return;
    Real dy[kBlock];
    block.load<T>(args.dy, args.dy_stride, 0, dy);
    for (int64_t i = 0; i < block.count; ++i) dh[i] = round(dh[i] + dy[i]);
  }

  void simple(const RnnBlock& block) const {
    Real dh[kBlock], p[kBlock];
    load_dh(block, dh);
    if (args.cell == RnnCell::kRelu) {
      const uint8_t* bits = static_cast<const uint8_t*>(args.factors.codes) + block.begin / 8;
      for (int64_t i = 0; i < block.count; ++i) dh[i] = bits[i / 8] >> (i % 8) & 1 ? dh[i] : Real(0);
    } else {
      factors.load(0, block, p);
      for (int64_t i = 0; i < block.count; ++i) dh[i] = product(dh[i], p[i]);
    }
    block.store<T>(dh, args.dgates, stride, 0);
  }

  void gated(const RnnBlock& block) const {
    const bool lstm = args.cell == RnnCell::kLstm;
    const int streams = rnn_streams(args.cell).count, gates = rnn_gates(args.cell);
    Real dh[kBlock], dc[kBlock], p[kMaxRnnStreams][kBlock], dgates[4][kBlock], dinputs[4][kBlock];
    load_dh(block, dh);
    if (lstm) block.load<T>(args.dc, hidden, 0, dc);
    for (int s = 0; s < streams; ++s) factors.load(s, block, p[s]);
    for (int64_t i = 0; i < block.count; ++i) {
      Real factor[kMaxRnnStreams], hidden_side[4], input_side[4];
      for (int s = 0; s < streams; ++s) factor[s] = p[s][i];
      if (lstm)
        lstm_backward(factor, dh[i], &dc[i], hidden_side, round);
      else
        gru_backward(factor, &dh[i], hidden_side, input_side, round);
      for (int g = 0; g < gates; ++g) dgates[g][i] = hidden_side[g];
      if (!lstm) dinputs[2][i] = input_side[2];
    }
    for (int g = 0; g < gates; ++g) block.store<T>(dgates[g], args.dgates, stride, g);
    if (lstm) {
      block.store<T>(dc, args.dc, hidden, 0);
    } else {
      for (int g = 0; g < gates; ++g)
        block.store<T>(g == 2 ? dinputs[2] : dgates[g], args.dinputs, stride, g);
      block.store<T>(dh, args.dh, hidden, 0);
    }
  }

  void run() const {
    const bool simple_cell = rnn_gates(args.cell) == 1;
    for_each_rnn_block(args.exec, args.rows * hidden, hidden,
                       [&](const RnnBlock& block) { simple_cell ? simple(block) : gated(block); });
  }
};

}  // namespace

int rnn_forward(const RnnForwardArgs& args) {
  return visit_dtype(args.dtype,
                     [&](auto tag) { return Forward<typename decltype(tag)::type>(args).stage(); });
}

int rnn_backward(const RnnBackwardArgs& args) {
  return visit_dtype(args.dtype, [&](auto tag) {
    Backward<typename decltype(tag)::type>(args).run();
    return 0;
  });
}

}  // namespace rad::cpu
