// Convolutions with their data, and dW by its definition. Inputs are multiples of 1/8; where weights are
// integers or powers of two too, and nothing is a code, every order of summation gives the same fp32 sums:
// the CPU's result bit for bit, and the definition's.
#pragma once
#include <array>

#include "core/conv.h"
#include "kernel_cases.h"

namespace testing {

using rad::ConvWgradArgs, rad::DType, rad::Draw, rad::Sampling, rad::SketchSpec;

struct Geometry {
  int64_t images, channels, outputs, groups;
  std::array<int64_t, 3> size, window, stride, padding, dilation;
  bool transposed = false;
};

constexpr std::array<int64_t, 3> kOnes{1, 1, 1}, kZeros{0, 0, 0};
inline int64_t output_size(const Geometry& g, size_t d) {
  const int64_t window = g.dilation[d] * (g.window[d] - 1) + 1;
  return g.transposed ? (g.size[d] - 1) * g.stride[d] - 2 * g.padding[d] + window
                      : (g.size[d] + 2 * g.padding[d] - window) / g.stride[d] + 1;
}

struct Digits {
  int64_t d[3];
  Digits(int64_t number, int64_t n1, int64_t n2) : d{number / n2 / n1, number / n2 % n1, number % n2} {}
};

// Where the items of dy [images, outputs, positions] lie.
enum class Order { kChannelsFirst, kChannelsLast, kPadded, kUnaligned, kExpanded, kSpread };

// The same problem with its data, x as the packed matrix.
struct Problem {
  Geometry g;
  SketchSpec spec;
  DType dtype;
  bool by_channel;
  Order order;
  int64_t in[3], out[3], inputs = 1, outs = 1, taps = 1;
  Matrix x, dy;
  Packed saved;
  Device<int64_t> device_index;
  std::vector<int64_t> index;

  static int64_t positions(const Geometry& g, bool output) {
    int64_t n = 1;
    for (size_t d = 0; d < 3; ++d) n *= output ? output_size(g, d) : g.size[d];
    return n;
  }
  static int64_t rows(const Geometry& g, bool by_channel) {
    return g.images * (by_channel ? g.channels : positions(g, false));
  }
  static int64_t cols(const Geometry& g, bool by_channel) {
    return by_channel ? positions(g, false) : g.channels;
  }

  Problem(const Geometry& g_, const SketchSpec& spec_, DType dtype_, bool by_channel_, Order order_)
      : g(g_),
        spec(spec_),
        dtype(dtype_),
        by_channel(by_channel_),
        order(order_),
        x(dtype, Form::kContiguous, rows(g, by_channel), cols(g, by_channel), 71),
        dy(dtype, order == Order::kExpanded ? Form::kExpanded : Form::kContiguous,
           g.images * (channels_first() ? g.outputs : positions(g, true)), dy_columns(), 72),
        saved(spec, dtype, x),
        device_index(kept_list(g, spec, by_channel)),
        index(device_index.get()) {
    for (size_t d = 0; d < 3; ++d) {
      in[d] = g.size[d];
      out[d] = output_size(g, d);
      inputs *= in[d];
      outs *= out[d];
      taps *= g.window[d];
    }
  }

  bool listed() const { return spec.num < spec.den && spec.sampling != Sampling::kDifferent; }
  bool exact() const {
    const int64_t n = sampled_length();
    return !spec.bits && (spec.draw == Draw::kStratified || n % rad::kept(n, spec.num, spec.den) == 0);
  }
  int64_t sampled_length() const { return by_row(spec) ? x.host().rows : x.host().cols; }
  static std::vector<int64_t> kept_list(const Geometry& g, const SketchSpec& spec, bool by_channel) {
    const int64_t n = by_row(spec) ? rows(g, by_channel) : cols(g, by_channel);
    return ReferenceSampler{spec, kKey, kSalt, n}.list();
  }

  static constexpr int64_t kSpreading = 8;  // items from one to the next
  bool channels_first() const { return order == Order::kChannelsFirst || order == Order::kSpread; }
  int64_t dy_columns() const {
    const int64_t pad = order == Order::kPadded ? 8 : order == Order::kUnaligned ? 3 : 0;
    const int64_t step = order == Order::kSpread ? kSpreading : 1;
    return channels_first() ? positions(g, true) * step : g.outputs + pad;
  }
  // Strides of images, outputs and positions.
  std::array<int64_t, 3> dy_strides() const {
    if (order == Order::kExpanded) return {0, 1, 0};
    if (channels_first()) {
      const int64_t step = order == Order::kSpread ? kSpreading : 1;
      return {g.outputs * outs * step, outs * step, step};
    }
    return {outs * dy_columns(), 1, dy_columns()};
  }
  int64_t dy_offset(int64_t image, int64_t output, int64_t q) const {
    const auto stride = dy_strides();
    return image * stride[0] + output * stride[1] + q * stride[2];
  }
  double dy_at(int64_t image, int64_t output, int64_t q) const {
    return get_item(dtype, dy.host().data, static_cast<size_t>(dy_offset(image, output, q)));
  }

  ConvWgradArgs args(const void* dy_data, const void* saved_data, const int64_t* list, void* dw) const {
    ConvWgradArgs a{};
    a.spec = spec;
    a.dtype = dtype;
    a.by_channel = by_channel;
    a.images = g.images;
    a.channels = g.channels;
    a.outputs = g.outputs;
    a.groups = g.groups;
    const auto stride = dy_strides();
    const int64_t strides[3] = {out[1] * out[2] * stride[2], out[2] * stride[2], stride[2]};
    for (size_t d = 0; d < 3; ++d)
      a.axis[d] = {in[d],
                   out[d],
                   g.window[d],
                   g.transposed ? g.stride[d] : 1,
                   g.transposed ? -g.padding[d] : g.padding[d],
                   g.transposed ? g.dilation[d] : -g.dilation[d],
                   g.transposed ? 1 : g.stride[d],
                   strides[d]};
    a.dy = dy_data;
    a.dy_image = stride[0];
    a.dy_output = stride[1];
    a.saved = saved_data;
    a.index = listed() ? list : nullptr;
    a.dw = dw;
    const int64_t channels = g.channels / g.groups, outputs = g.outputs / g.groups;
    a.dw_output = g.transposed ? taps : channels * taps;
    a.dw_channel = g.transposed ? outputs * taps : taps;
    a.dw_group = channels * outputs * taps;
    return a;
  }
  size_t weights() const { return static_cast<size_t>(g.channels / g.groups * g.outputs * taps); }

  // The output position where p and a tap meet, or -1; by the definition of both convolutions.
  int64_t meeting(int64_t p, int64_t tap) const {
    const Digits at(p, in[1], in[2]), t(tap, g.window[1], g.window[2]);
    int64_t q = 0;
    for (size_t d = 0; d < 3; ++d) {
      int64_t found = -1;
      for (int64_t o = 0; o < out[d]; ++o) {
        const int64_t reach = g.transposed
                                  ? at.d[d] * g.stride[d] + t.d[d] * g.dilation[d] - g.padding[d] - o
                                  : o * g.stride[d] + t.d[d] * g.dilation[d] - g.padding[d] - at.d[d];
        if (reach == 0) found = o;
      }
      if (found < 0) return -1;
      q = q * out[d] + found;
    }
    return q;
  }
};

struct Bound {
  double want = 0, magnitude = 0, terms = 0;
};

// dW entry by entry in fp64, from the stored values as cpu::decode gives them: `wide`, codes of 16-bit types
// as fp32, or rounded to their type.
inline std::vector<Bound> definition(const Problem& p, bool wide) {
  const int64_t rows = p.x.host().rows, cols = p.x.host().cols;
  const rad::SavedLayout layout = saved_layout(p.spec, p.dtype, rows, cols);
  const bool widen = wide && item_size(p.dtype) == 2;
  std::vector<double> stored(static_cast<size_t>(layout.lines * layout.width));
  EXPECT(rad::cpu::decode(
             {{}, p.spec, p.dtype, widen, rows, cols, p.saved.host.data(), 0, layout.lines, stored.data()}) ==
         0);
  const ReferenceSampler sampler{p.spec, kKey, kSalt, p.sampled_length()};
  const bool own = p.spec.sampling == Sampling::kDifferent, all = p.spec.num == p.spec.den;
  const int64_t channels = p.g.channels / p.g.groups, outputs = p.g.outputs / p.g.groups;
  std::vector<Bound> dw(p.weights());
  for (int64_t line = 0; line < layout.lines; ++line)
    for (int64_t j = 0; j < layout.width; ++j) {
      const int64_t number = by_row(p.spec) ? line : j;
      const int64_t drawn = own          ? sampler.index(line, j)
                            : p.listed() ? p.index[static_cast<size_t>(number)]
                                         : number;
      const int64_t row = by_row(p.spec) ? drawn : line, col = by_row(p.spec) ? j : drawn;
      const double value = get_item(widen ? DType::kF32 : p.dtype, stored.data(),
                                    static_cast<size_t>(line * layout.width + j)) *
                           (all ? 1 : sampler.weight(number));
      const int64_t image = row / (p.by_channel ? p.g.channels : p.inputs);
      const int64_t channel = p.by_channel ? row % p.g.channels : col,
                    at = p.by_channel ? col : row % p.inputs;
      const int64_t group = channel / channels, c = channel % channels;
      for (int64_t tap = 0; tap < p.taps; ++tap) {
        const int64_t q = p.meeting(at, tap);
        if (q < 0) continue;
        for (int64_t o = 0; o < outputs; ++o) {
          const int64_t first = p.g.transposed ? channel : group * outputs + o,
                        second = p.g.transposed ? o : c, seconds = p.g.transposed ? outputs : channels;
          Bound& b = dw[static_cast<size_t>((first * seconds + second) * p.taps + tap)];
          const double term = value * p.dy_at(image, group * outputs + o, q);
          b.want += term;
          b.magnitude += std::abs(term);
          b.terms += 1;
        }
      }
    }
  return dw;
}

inline void check_within(const Problem& p, const std::vector<Bound>& want, const std::vector<char>& got,
                         const std::string& what) {
  const DType dtype = p.dtype;
  const int sum_bits = dtype == DType::kF64 ? 53 : 24;
  const int stored_bits = dtype == DType::kBF16 ? 8 : dtype == DType::kF16 ? 11 : sum_bits;
  for (size_t i = 0; i < want.size(); ++i) {
    const Bound& b = want[i];
    // Where sums are not exact, n products, weighted and summed, round n + 2 times at most.
    const double bound = !p.exact() ? 1.01 * (std::ldexp((b.terms + 2) * b.magnitude, -sum_bits) +
                                              std::ldexp(std::abs(b.want), -stored_bits))
                                    : 0;
    const double exact = p.exact() ? rounded(dtype, b.want) : b.want;
    const double found = get_item(dtype, got.data(), i);
    EXPECT(std::abs(found - exact) <= bound, what, " element ", i, " is ", found, ", expected ", exact);
  }
}

inline void check(const Geometry& g, const SketchSpec& spec, DType dtype, bool by_channel,
                  Order order = Order::kChannelsFirst, bool on_tensor_cores = false) {
  const Problem p(g, spec, dtype, by_channel, order);
  const std::string what = describe(spec, dtype, p.x.host().rows, p.x.host().cols) + " window " +
                           std::to_string(p.taps) + (g.transposed ? " transposed" : "");
  const size_t bytes = p.weights() * static_cast<size_t>(item_size(dtype));
  std::vector<char> cpu_dw(bytes, static_cast<char>(0xAB));
  run_cpu<ConvWgradArgs>(rad::cpu::conv_wgrad_workspace, rad::cpu::conv_wgrad,
                         p.args(p.dy.host().data, p.saved.host.data(), p.index.data(), cpu_dw.data()));
  check_within(p, definition(p, true), cpu_dw, what);
  const auto want = definition(p, !on_tensor_cores);
  for (const bool portable : {false, true}) {
    Device<char> dw(bytes);
    ConvWgradArgs args = p.args(p.dy.device().data, p.saved.device.data(), p.device_index.data(), dw.data());
    args.portable = portable;
    EXPECT((rad::cuda::conv_wgrad_workspace(args) > 0) == on_tensor_cores, what);
    run_cuda<ConvWgradArgs>(rad::cuda::conv_wgrad_workspace, rad::cuda::conv_wgrad, args);
    const auto got = dw.get();
    if (p.exact()) EXPECT_SAME(got, cpu_dw, what);
    check_within(p, want, got, what + " CUDA");
    if (!on_tensor_cores) break;
  }
}

}  // namespace testing
