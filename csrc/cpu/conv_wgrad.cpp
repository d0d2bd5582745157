// dW of a convolution: an implicit GEMM over the kept entries of x.
//
// Piece by piece, output positions of dy are laid out as rows of one strip of outputs (the panel, in L2). The
// entries of x that can meet them come 128 at a time, and for each tap the pairs (entry, panel row) that meet
// are listed; sums of some channels times a strip then stay in registers while the pairs stream by. Neither
// x nor its patches are ever dense, and padding never enters: a pair outside the image is not listed.
#include <algorithm>
#include <cstring>

#include "core/conv.h"
#include "core/dtype.h"
#include "cpu/conv_entries.h"
#include "cpu/conv_meetings.h"
#include "cpu/conv_panel.h"
#include "cpu/parallel.h"

#if defined(__GNUC__) && !defined(__clang__)
// A product is summed the same way on every run of one machine; which machines fuse is not promised.
#pragma GCC optimize("fp-contract=fast")
#endif

namespace rad::cpu {
namespace {

constexpr int64_t kPanelBytes = 256 << 10;  // dy rows at a time
constexpr int64_t kSumBytes =
    384 << 10;  // of taps, channels and a strip of outputs that are summed at a time
constexpr int64_t kValueBytes = 128 << 10;  // of x at a time, a thread
constexpr int kRegisters = 16;              // vectors of sums

// The pairs of one tap and what they count from.
template <class Sum>
struct TapPairs {
  const Pairs& pairs;
  const Sum* panel;
  const Sum* x;
};

// sums[c][strip] += sum_e x[value_e + c] * panel[row_e], for kChannels channels at once. Few sums would
// wait for their own additions, so they come in several turns.
template <class Vector, int kVectors, int kChannels, class Sum>
inline __attribute__((always_inline)) void add_channels(const TapPairs<Sum>& p, int64_t channel, Sum* sums) {
  constexpr int kTurns = kVectors * kChannels < 8 ? 8 / (kVectors * kChannels) : 1;
  auto* out = reinterpret_cast<Vector*>(sums);
  Vector s[kTurns][kChannels][kVectors];
  for (int c = 0; c < kChannels; ++c) {
    for (int v = 0; v < kVectors; ++v) s[0][c][v] = out[c * kVectors + v];
  }
  for (int turn = 1; turn < kTurns; ++turn) {
    for (int c = 0; c < kChannels; ++c) {
      for (int v = 0; v < kVectors; ++v) s[turn][c][v] = Vector{};
    }
  }
  const auto add = [&](int64_t e, int turn) __attribute__((always_inline)) {
    const auto* row = reinterpret_cast<const Vector*>(p.panel + p.pairs.row[e]);
    const Sum* x = p.x + p.pairs.value[e] + channel;
    for (int c = 0; c < kChannels; ++c) {
      for (int v = 0; v < kVectors; ++v) s[turn][c][v] += row[v] * x[c];
    }
  };
  int64_t e = 0;
  for (; e + kTurns <= p.pairs.count; e += kTurns) {
    for (int turn = 0; turn < kTurns; ++turn) add(e + turn, turn);
  }
  for (; e < p.pairs.count; ++e) add(e, 0);
  for (int turn = 1; turn < kTurns; ++turn) {
    for (int c = 0; c < kChannels; ++c) {
      for (int v = 0; v < kVectors; ++v) s[0][c][v] += s[turn][c][v];
    }
  }
  for (int c = 0; c < kChannels; ++c) {
    for (int v = 0; v < kVectors; ++v) out[c * kVectors + v] = s[0][c][v];
  }
}

template <class Vector, int kVectors, int kChannels, class Sum>
inline __attribute__((always_inline)) int64_t add_while(const TapPairs<Sum>& p, int64_t c, int64_t channels,
                                                        Sum* sums) {
  constexpr int64_t kStrip = kVectors * (kVectorBytes / sizeof(Sum));
  for (; c + kChannels <= channels; c += kChannels)
    add_channels<Vector, kVectors, kChannels>(p, c, sums + c * kStrip);
  return c;
}

// All channels, as many at a time as registers hold.
template <class Vector, int kVectors, class Sum>
inline __attribute__((always_inline)) void add_tap(const TapPairs<Sum>& p, int64_t channels, Sum* sums) {
  int64_t c = 0;
  if constexpr (kRegisters / kVectors >= 16) c = add_while<Vector, kVectors, 16>(p, c, channels, sums);
  if constexpr (kRegisters / kVectors >= 8) c = add_while<Vector, kVectors, 8>(p, c, channels, sums);
  c = add_while<Vector, kVectors, 4>(p, c, channels, sums);
  c = add_while<Vector, kVectors, 3>(p, c, channels, sums);
  c = add_while<Vector, kVectors, 2>(p, c, channels, sums);
  add_while<Vector, kVectors, 1>(p, c, channels, sums);
}

template <class Vector, class Sum>
inline __attribute__((always_inline)) void add_strip(const TapPairs<Sum>& p, int vectors, int64_t channels,
                                                     Sum* sums) {
  if (vectors == 4) return add_tap<Vector, 4>(p, channels, sums);
  if (vectors == 2) return add_tap<Vector, 2>(p, channels, sums);
  add_tap<Vector, 1>(p, channels, sums);
}

RAD_VECTOR_CLONES void add_pairs(const TapPairs<float>& p, int vectors, int64_t channels, float* sums) {
  add_strip<FloatVector>(p, vectors, channels, sums);
}
RAD_VECTOR_CLONES void add_pairs(const TapPairs<double>& p, int vectors, int64_t channels, double* sums) {
  add_strip<DoubleVector>(p, vectors, channels, sums);
}

// How the work is cut.
template <class T>
struct Plan {
  using Sum = Accumulate<T>;
  static constexpr int64_t kLane = kVectorBytes / sizeof(Sum);
  int64_t taps, group_channels, group_outputs;
  int vectors;                       // of a strip
  int64_t strip, rows;               // outputs of a strip; output positions of a panel
  int64_t tap_block, channel_block;  // whose sums are held at a time
  int64_t together;  // channels that are summed side by side: none is split, so that threads change no bit
  int64_t tap_workers, channel_workers;  // each with a part of both
  int64_t value_channels;                // of a worker, at a time

  explicit Plan(const ConvWgradArgs& a)
      : taps(tap_count(a.axis)), group_channels(a.channels / a.groups), group_outputs(a.outputs / a.groups) {
    const auto padded = [&](int v) { return (group_outputs + v * kLane - 1) / (v * kLane) * v; };
    vectors = 4;
    for (const int narrower : {2, 1}) {
      if (padded(narrower) < padded(vectors)) vectors = narrower;
    }
    strip = vectors * kLane;
    const int64_t outputs = output_positions(a.axis);
    rows = kPanelBytes / (strip * static_cast<int64_t>(sizeof(Sum)));
    rows = std::min(outputs < rows ? rows / outputs * outputs : rows, a.images * outputs);
    const int64_t sums = kSumBytes / (strip * static_cast<int64_t>(sizeof(Sum)));
    tap_block = std::min(taps, sums);
    channel_block = std::min(group_channels, sums / tap_block);
    together = a.spec.sampling == Sampling::kDifferent ? 1 : kRegisters / vectors;
    const int64_t threads = std::max(a.exec.threads, 1), units = (channel_block + together - 1) / together;
    channel_workers = std::min(threads, units);
    tap_workers = std::min(tap_block, threads / channel_workers);
    value_channels = a.spec.sampling == Sampling::kDifferent
                         ? 1
                         : std::min<int64_t>((units + channel_workers - 1) / channel_workers * together,
                                             kValueBytes / (kEntries * static_cast<int64_t>(sizeof(Sum))));
  }

  int64_t workers() const { return tap_workers * channel_workers; }
  int64_t panel_bytes() const { return align_plane(rows * strip * sizeof(Sum)); }
  int64_t sum_bytes() const { return align_plane(tap_block * channel_block * strip * sizeof(Sum)); }
  int64_t value_bytes() const { return align_plane(kEntries * value_channels * sizeof(Sum)); }
  int64_t list_bytes(const ConvWgradArgs& a) const {
    const int64_t kept_rows = kept(packed_rows(a), a.spec.num, a.spec.den);
    return SharedEntries<T>::needs_sorting(a) ? kept_rows * static_cast<int64_t>(sizeof(KeptRow)) : 0;
  }
  int64_t bytes(const ConvWgradArgs& a) const {
    return kPlaneAlign + panel_bytes() + sum_bytes() + workers() * value_bytes() + list_bytes(a);
  }
};

struct Part {
  int64_t begin, end;
  Part(int64_t begin_, int64_t end_) : begin(begin_), end(end_) {}
  // Number i of `parts` of [0, n).
  Part(int64_t n, int64_t parts, int64_t i) : begin(n * i / parts), end(n * (i + 1) / parts) {}
};

template <class T>
class Product {
  using Sum = Accumulate<T>;

 public:
  Product(const ConvWgradArgs& args, const SavedView& saved)
      : a_(args), saved_(saved), plan_(args), outputs_(output_positions(args.axis)) {
    char* base = reinterpret_cast<char*>(align_plane(reinterpret_cast<int64_t>(args.workspace)));
    panel_ = reinterpret_cast<Sum*>(base);
    sums_ = reinterpret_cast<Sum*>(base += plan_.panel_bytes());
    values_ = base += plan_.sum_bytes();
    sorted_ = reinterpret_cast<KeptRow*>(base + plan_.workers() * plan_.value_bytes());
  }

  void run() {
    if (a_.spec.sampling == Sampling::kDifferent) {
      run(OwnEntries<T>(a_, saved_));
    } else {
      run(SharedEntries<T>(a_, saved_, sorted_));
    }
  }

 private:
  struct Block {
    int64_t group, output, width;  // first output within the group, outputs of the strip
    int64_t tap, taps, channel, channels;
  };

  template <class Entries>
  void run(const Entries& entries) {
    Block b{};
    for (b.group = 0; b.group < a_.groups; ++b.group) {
      for (b.output = 0; b.output < plan_.group_outputs; b.output += plan_.strip) {
        b.width = std::min(plan_.strip, plan_.group_outputs - b.output);
        for (b.tap = 0; b.tap < plan_.taps; b.tap += plan_.tap_block) {
          b.taps = std::min(plan_.tap_block, plan_.taps - b.tap);
          for (b.channel = 0; b.channel < plan_.group_channels; b.channel += plan_.channel_block) {
            b.channels = std::min(plan_.channel_block, plan_.group_channels - b.channel);
            run_block(entries, b);
          }
        }
      }
    }
  }

  template <class Entries>
  void run_block(const Entries& entries, const Block& b) {
    std::fill(sums_, sums_ + b.taps * b.channels * plan_.strip, Sum{0});
    const int64_t all = a_.images * outputs_;
    for (int64_t begin = 0; begin < all; begin += plan_.rows) {
      const int64_t end = std::min(begin + plan_.rows, all);
      load_panel(b, begin, end);
      parallel_for(a_.exec, plan_.workers(), 1, [&](int64_t first, int64_t last) {
        for (int64_t worker = first; worker < last; ++worker) add_panel(entries, b, worker, begin, end);
      });
    }
    store(b);
  }

  // Input positions, over all images, that can meet output positions [begin, end): bounded by the outermost
  // axis that has more than one position.
  Part reach(int64_t begin, int64_t end) const {
    int d = 0;
    while (d < 2 && a_.axis[d].input == 1 && a_.axis[d].output == 1) ++d;
    const ConvAxis& a = a_.axis[d];
    const int64_t row = outputs_ / a.output, all = input_positions(a_.axis), input_row = all / a.input;
    const int64_t spread = (a.taps - 1) * a.step;
    const auto position = [&](int64_t output, int64_t shift) {
      return floor_div(output % outputs_ / row * a.divisor - a.offset - shift, a.scale);
    };
    const int64_t low = position(begin, std::max<int64_t>(spread, 0)),
                  high = position(end - 1, std::min<int64_t>(spread, 0)) + 1;
    return {begin / outputs_ * all + std::clamp<int64_t>(low, 0, a.input) * input_row,
            (end - 1) / outputs_ * all + std::clamp<int64_t>(high, 0, a.input) * input_row};
  }

  template <class Entries>
  void add_panel(const Entries& entries, const Block& b, int64_t worker, int64_t begin, int64_t end) {
    const Part units((b.channels + plan_.together - 1) / plan_.together, plan_.channel_workers,
                     worker % plan_.channel_workers);
    const Part taps(b.taps, plan_.tap_workers, worker / plan_.channel_workers);
    const Part inputs = reach(begin, end);
    const int64_t first = entries.first(inputs.begin), last = entries.last(inputs.end);
    const int64_t last_channel = std::min(units.end * plan_.together, b.channels);
    auto* values = reinterpret_cast<Sum*>(values_ + worker * plan_.value_bytes());
    for (int64_t c = units.begin * plan_.together; c < last_channel; c += plan_.value_channels) {
      const int64_t count = std::min(plan_.value_channels, last_channel - c);
      const int64_t channel = b.group * plan_.group_channels + b.channel + c;
      for (int64_t at = first; at < last; at += kEntries) {
        const int64_t size = std::min(kEntries, last - at);
        int64_t position[kEntries];
        entries.places(channel, at, size, position);
        entries.values(channel, count, at, size, count, values);
        const Meetings meetings(a_.axis, size, position, begin, end - begin, plan_.strip, count);
        meetings.each_tap(b.tap + taps.begin, b.tap + taps.end,
                          [&](int64_t tap, const Pairs& pairs, int64_t distance) {
                            add_pairs(TapPairs<Sum>{pairs, panel_ + distance, values}, plan_.vectors, count,
                                      sums_ + ((tap - b.tap) * b.channels + c) * plan_.strip);
                          });
      }
    }
  }

  void load_panel(const Block& b, int64_t begin, int64_t end) {
    const ConvAxis& x = a_.axis[2];
    const T* dy = static_cast<const T*>(a_.dy) + (b.group * plan_.group_outputs + b.output) * a_.dy_output;
    parallel_for(a_.exec, end - begin, 256, [&](int64_t first, int64_t last) {
      for (int64_t q = begin + first; q < begin + last;) {  // runs along the innermost axis
        const int64_t image = q / outputs_, rest = q - image * outputs_, q2 = rest % x.output,
                      q1 = rest / x.output % a_.axis[1].output, q0 = rest / x.output / a_.axis[1].output;
        const int64_t run = std::min(x.output - q2, begin + last - q);
        load_rows(dy + image * a_.dy_image + q0 * a_.axis[0].dy_stride + q1 * a_.axis[1].dy_stride +
                      q2 * x.dy_stride,
                  x.dy_stride, a_.dy_output, run, b.width, plan_.strip, panel_ + (q - begin) * plan_.strip);
        q += run;
      }
    });
  }

  void store(const Block& b) {
    T* dw = static_cast<T*>(a_.dw) + b.group * a_.dw_group + b.output * a_.dw_output +
            b.channel * a_.dw_channel + b.tap;
    for (int64_t o = 0; o < b.width; ++o) {
      for (int64_t c = 0; c < b.channels; ++c) {
        T* to = dw + o * a_.dw_output + c * a_.dw_channel;
        for (int64_t t = 0; t < b.taps; ++t) to[t] = narrow<T>(sums_[(t * b.channels + c) * plan_.strip + o]);
      }
    }
  }

  const ConvWgradArgs& a_;
  const SavedView& saved_;
  Plan<T> plan_;
  int64_t outputs_;
  Sum* panel_;
  Sum* sums_;
  char* values_;
  KeptRow* sorted_;
};

}  // namespace

int64_t conv_wgrad_workspace(const ConvWgradArgs& args) {
  int64_t bytes = 0;
  visit_dtype(args.dtype, [&](auto tag) {
    bytes = Plan<typename decltype(tag)::type>(args).bytes(args);
    return 0;
  });
  return bytes;
}

int conv_wgrad(const ConvWgradArgs& args) {
  const SavedView saved(args.spec, args.dtype, packed_rows(args), packed_cols(args), args.saved);
  return visit_dtype(args.dtype, [&](auto tag) {
    Product<typename decltype(tag)::type>(args, saved).run();
    return 0;
  });
}

}  // namespace rad::cpu
