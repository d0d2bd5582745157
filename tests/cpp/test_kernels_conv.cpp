// conv_wgrad. Without codes inputs are multiples of 1/8 and weights integers or powers of two, so every order
// of summation gives the same fp32 sums: the CPU's result bit for bit, and the definition's.
#include <array>

#include "core/conv.h"
#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

struct Geometry {
  int64_t images, channels, outputs, groups;
  std::array<int64_t, 3> size, window, stride, padding, dilation;
  bool transposed = false;
};

constexpr std::array<int64_t, 3> kOnes{1, 1, 1}, kZeros{0, 0, 0};
const Geometry kPlain{2, 3, 10, 1, {1, 5, 4}, {1, 3, 3}, kOnes, {0, 1, 1}, kOnes};
const Geometry kSparse{2, 4, 18, 2, {1, 5, 8}, {1, 3, 2}, {1, 2, 3}, {0, 2, 1}, {1, 2, 1}};
const Geometry kSolid{1, 2, 3, 1, {3, 4, 5}, {2, 3, 2}, {2, 1, 1}, {1, 0, 1}, kOnes};
const Geometry kLine{3, 4, 12, 4, {1, 1, 20}, {1, 1, 4}, kOnes, {0, 0, 2}, {1, 1, 2}};
const Geometry kWider{2, 4, 6, 2, {1, 4, 5}, {1, 3, 2}, {1, 2, 2}, {0, 1, 0}, {1, 1, 2}, true};
const Geometry kWide{2, 2, 9, 1, {2, 3, 2}, {2, 2, 3}, {1, 2, 3}, kZeros, kOnes, true};
// More entries than a block has threads, more outputs than a block's.
const Geometry kLarge{3, 5, 67, 1, {1, 12, 11}, {1, 3, 3}, kOnes, {0, 1, 1}, kOnes};
const Geometry kGeometries[] = {kPlain, kSparse, kSolid, kLine, kWider, kWide};

int64_t output_size(const Geometry& g, size_t d) {
  const int64_t window = g.dilation[d] * (g.window[d] - 1) + 1;
  return g.transposed ? (g.size[d] - 1) * g.stride[d] - 2 * g.padding[d] + window
                      : (g.size[d] + 2 * g.padding[d] - window) / g.stride[d] + 1;
}

struct Digits {
  int64_t d[3];
  Digits(int64_t number, int64_t n1, int64_t n2) : d{number / n2 / n1, number / n2 % n1, number % n2} {}
};

// The same problem with its data: x as the packed matrix, dy [images, outputs, positions] or channels last.
struct Problem {
  Geometry g;
  SketchSpec spec;
  DType dtype;
  bool by_channel, channels_last;
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

  Problem(const Geometry& g_, const SketchSpec& spec_, DType dtype_, bool by_channel_, bool last)
      : g(g_),
        spec(spec_),
        dtype(dtype_),
        by_channel(by_channel_),
        channels_last(last),
        x(dtype, Form::kContiguous, rows(g, by_channel), cols(g, by_channel), 71),
        dy(dtype, Form::kContiguous, g.images * (last ? positions(g, true) : g.outputs),
           last ? g.outputs : positions(g, true), 72),
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
  int64_t sampled_length() const { return by_row(spec) ? x.host().rows : x.host().cols; }
  static std::vector<int64_t> kept_list(const Geometry& g, const SketchSpec& spec, bool by_channel) {
    const int64_t n = by_row(spec) ? rows(g, by_channel) : cols(g, by_channel);
    return ReferenceSampler{spec, kKey, kSalt, n}.list();
  }

  int64_t dy_offset(int64_t image, int64_t output, int64_t q) const {
    return channels_last ? (image * outs + q) * g.outputs + output : (image * g.outputs + output) * outs + q;
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
    const int64_t step = channels_last ? g.outputs : 1,
                  strides[3] = {out[1] * out[2] * step, out[2] * step, step};
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
    a.dy_image = g.outputs * outs;
    a.dy_output = channels_last ? 1 : outs;
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

// dW entry by entry in fp64, from the stored values as cpu::decode gives them.
std::vector<Bound> definition(const Problem& p) {
  const int64_t rows = p.x.host().rows, cols = p.x.host().cols;
  const SavedLayout layout = saved_layout(p.spec, p.dtype, rows, cols);
  const bool widen = item_size(p.dtype) == 2;
  std::vector<double> stored(static_cast<size_t>(layout.lines * layout.width));
  EXPECT(cpu::decode(
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

void check(const Geometry& g, const SketchSpec& spec, DType dtype, bool by_channel,
           bool channels_last = false) {
  const Problem p(g, spec, dtype, by_channel, channels_last);
  const std::string what = describe(spec, dtype, p.x.host().rows, p.x.host().cols) + " window " +
                           std::to_string(p.taps) + (g.transposed ? " transposed" : "");
  const size_t bytes = p.weights() * static_cast<size_t>(item_size(dtype));
  std::vector<char> cpu_dw(bytes, static_cast<char>(0xAB));
  Device<char> dw(bytes);
  run_cpu<ConvWgradArgs>(cpu::conv_wgrad_workspace, cpu::conv_wgrad,
                         p.args(p.dy.host().data, p.saved.host.data(), p.index.data(), cpu_dw.data()));
  run_cuda<ConvWgradArgs>(
      cuda::conv_wgrad_workspace, cuda::conv_wgrad,
      p.args(p.dy.device().data, p.saved.device.data(), p.device_index.data(), dw.data()));
  const auto got = dw.get();
  if (!spec.bits) EXPECT_SAME(got, cpu_dw, what);
  const auto want = definition(p);
  const int sum_bits = dtype == DType::kF64 ? 53 : 24;
  const int stored_bits = dtype == DType::kBF16 ? 8 : dtype == DType::kF16 ? 11 : sum_bits;
  for (size_t i = 0; i < want.size(); ++i) {
    const Bound& b = want[i];
    // Without codes sums are exact; with them n products, weighted and summed, round n + 2 times at most.
    const double bound = spec.bits ? 1.01 * (std::ldexp((b.terms + 2) * b.magnitude, -sum_bits) +
                                             std::ldexp(std::abs(b.want), -stored_bits))
                                   : 0;
    const double exact = spec.bits ? b.want : rounded(dtype, b.want);
    for (const void* found : {static_cast<const void*>(got.data()), static_cast<const void*>(cpu_dw.data())})
      EXPECT(std::abs(get_item(dtype, found, i) - exact) <= bound, what, " element ", i, " is ",
             get_item(dtype, found, i), ", expected ", exact);
  }
}

// Weights of the other draws are n / k, so that k must be a power of two times a divisor of n.
struct Kept {
  int64_t num, den;
};
constexpr Kept kUneven{3, 10}, kQuarter{1, 4};

Kept share(Draw draw) { return draw == Draw::kStratified ? kUneven : kQuarter; }

TEST(conv_every_geometry_sampling_and_draw) {
  for (const Geometry& g : kGeometries)
    for (const Combination& c : kCombinations) {
      if (c.sampling == Sampling::kTileRows || c.sampling == Sampling::kProject || c.draw == Draw::kNorm)
        continue;
      const bool by_channel = c.sampling != Sampling::kRows;
      const int64_t n = by_row(c.spec(1, 1)) ? Problem::rows(g, by_channel) : Problem::cols(g, by_channel);
      if (c.draw != Draw::kStratified && n % 4) continue;
      const Kept keep = share(c.draw);
      check(g, c.spec(keep.num, keep.den), DType::kF32, by_channel);
    }
}

TEST(conv_dtypes_layouts_and_bits) {
  for (const DType dtype : kDTypes)
    for (const bool last : {false, true})
      for (const Sampling sampling : {Sampling::kRows, Sampling::kSame, Sampling::kDifferent})
        for (const int bits : {0, 8, 1})
          check(last ? kWider : kPlain, {3, 10, sampling, Draw::kStratified, bits}, dtype,
                sampling != Sampling::kRows, last);
}

TEST(conv_everything_kept_as_codes) {
  for (const bool by_channel : {false, true})
    for (const int bits : kBits)
      check(kSparse, {1, 1, Sampling::kRows, Draw::kStratified, bits}, DType::kF32, by_channel);
}

TEST(conv_more_than_a_block) {
  const Geometry& g = testing::large ? kLarge : kPlain;
  for (const Sampling sampling : {Sampling::kRows, Sampling::kSame, Sampling::kDifferent})
    check(g, {9, 10, sampling, Draw::kStratified, 0}, DType::kBF16, sampling != Sampling::kRows);
}

TEST(conv_one_kept) {
  for (const Sampling sampling : {Sampling::kRows, Sampling::kSame, Sampling::kDifferent})
    check(kWide, {1, 1000, sampling, Draw::kStratified, 0}, DType::kF64, sampling != Sampling::kRows);
}

}  // namespace
