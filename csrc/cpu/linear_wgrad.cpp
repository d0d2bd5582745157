// dW for `different`: dW[o, f] = sum over the kept entries (r, f) of dy[r, o] * weight * x[r, f].
//
// Kept entries of a tile of features are sorted by (token block, feature). Then one strip of outputs at a
// time: a feature's sums stay in registers while the entries of a token block stream by, each adding one row
// of a dy panel that lies in L1. Work falls with keep; nothing dense of x is ever made.
#include <algorithm>
#include <cstring>

#include "core/matrix_view.h"
#include "cpu/codes.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"

#if defined(__GNUC__) && !defined(__clang__)
// A product is summed the same way on every run of one machine; which machines fuse is not promised.
#pragma GCC optimize("fp-contract=fast")
#endif

namespace rad::cpu {
namespace {

constexpr int64_t kTokens = 128;        // of a token block: an entry's token fits a byte
constexpr int64_t kStripBytes = 256;    // of outputs that are summed at a time
constexpr int64_t kTileFeatures = 256;  // features whose entries are sorted together
constexpr int64_t kLeastEntryBytes = 64 << 10,
                  kMostEntryBytes = 768 << 10;  // of sorted entries held at a time

template <class Sum>
constexpr int64_t kStrip = kStripBytes / static_cast<int64_t>(sizeof(Sum));

typedef float FloatVector __attribute__((vector_size(64), may_alias));
typedef double DoubleVector __attribute__((vector_size(64), may_alias));

// sums[0..strip) += value_e * panel[token_e] over the entries of one feature.
template <class Vector, class Sum>
inline __attribute__((always_inline)) void add_entries(const uint8_t* token, const Sum* value, int64_t count,
                                                       const Sum* panel, Sum* sums) {
  auto* out = reinterpret_cast<Vector*>(sums);
  Vector s0 = out[0], s1 = out[1], s2 = out[2], s3 = out[3];
  for (int64_t e = 0; e < count; ++e) {
    const auto* row = reinterpret_cast<const Vector*>(panel + token[e] * kStrip<Sum>);
    const Sum v = value[e];
    s0 += row[0] * v;
    s1 += row[1] * v;
    s2 += row[2] * v;
    s3 += row[3] * v;
  }
  out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
}

// The same for every feature of a tile: feature f owns entries [start[f], start[f + 1]).
RAD_VECTOR_CLONES void add_block(const int32_t* start, int64_t features, const uint8_t* token,
                                 const float* value, const float* panel, float* sums) {
  for (int64_t f = 0; f < features; ++f) {
    add_entries<FloatVector>(token + start[f], value + start[f], start[f + 1] - start[f], panel,
                             sums + f * kStrip<float>);
  }
}
RAD_VECTOR_CLONES void add_block(const int32_t* start, int64_t features, const uint8_t* token,
                                 const double* value, const double* panel, double* sums) {
  for (int64_t f = 0; f < features; ++f) {
    add_entries<DoubleVector>(token + start[f], value + start[f], start[f + 1] - start[f], panel,
                              sums + f * kStrip<double>);
  }
}

// How the work is cut, and where its parts lie in the workspace.
template <class T>
struct Plan {
  using Sum = Accumulate<T>;
  int64_t tile, rows, blocks, capacity,
      threads;  // features; tokens, token blocks and entries a block at a time
  bool whole;   // a tile's sums are rounded to dW once, so all tokens come in one piece

  explicit Plan(const LinearWgradArgs& args) {
    const int64_t k = kept(args.features, args.spec.num, args.spec.den), n = args.dy.rows;
    // Entries of one token in a tile: its strata, of which two may hang over; all of them with replacement.
    const bool stratified = args.spec.draw == Draw::kStratified;
    const auto per_token = [&](int64_t features) {
      return stratified ? std::min(k, features / std::max<int64_t>(args.features / k, 1) + 2) : k;
    };
    whole = sizeof(T) == 2;
    tile = std::min(kTileFeatures, args.features);
    const int64_t entry = sizeof(Sum) + 1;
    // Scratch stays a fraction of what is saved, lest a small layer's backward pass cost what its pack
    // spared.
    const int64_t all = (n + kTokens - 1) / kTokens, pieces = whole ? all : 1;
    const int64_t budget =
        std::clamp(n * k * static_cast<int64_t>(sizeof(T)) / 4, kLeastEntryBytes, kMostEntryBytes);
    const int64_t least = whole ? 16 : 64;
    while (stratified && tile > least && pieces * kTokens * per_token(tile) * entry > budget) tile /= 2;
    capacity = kTokens * per_token(tile);
    blocks = whole ? all : std::clamp<int64_t>(budget / (capacity * entry), 1, all);
    rows = blocks * kTokens;
    threads = std::max(args.exec.threads, 1);
  }

  int64_t strips(const LinearWgradArgs& args) const { return (args.dy.cols + kStrip<Sum> - 1) / kStrip<Sum>; }
  // value [blocks][capacity], start [blocks][tile + 1], token [blocks][capacity], then per thread sums and
  // panel.
  int64_t value_bytes() const { return blocks * capacity * static_cast<int64_t>(sizeof(Sum)); }
  int64_t start_bytes() const { return blocks * (tile + 1) * 4; }
  int64_t token_bytes() const { return blocks * capacity; }
  int64_t worker_bytes() const { return (tile + kTokens) * kStripBytes; }
  int64_t shared_bytes() const { return align_plane(value_bytes() + start_bytes() + token_bytes()); }
  int64_t bytes() const { return kPlaneAlign + shared_bytes() + threads * worker_bytes(); }
};

template <class T>
class Product {
  using Sum = Accumulate<T>;

 public:
  Product(const LinearWgradArgs& args, const SavedView& saved)
      : args_(args), saved_(saved), sampler_(saved.key, saved.salt, args.spec, args.features), plan_(args) {
    auto* base = reinterpret_cast<char*>(align_plane(reinterpret_cast<int64_t>(args.workspace)));
    value_ = reinterpret_cast<Sum*>(base);
    start_ = reinterpret_cast<int32_t*>(base + plan_.value_bytes());
    token_ = reinterpret_cast<uint8_t*>(base + plan_.value_bytes() + plan_.start_bytes());
    workers_ = base + plan_.shared_bytes();
  }

  void run() {
    for (int64_t row = 0; row < args_.dy.rows; row += plan_.rows) {
      for (int64_t feature = 0; feature < args_.features; feature += plan_.tile) add_tile(row, feature);
    }
  }

 private:
  void add_tile(int64_t row, int64_t feature) {
    const int64_t rows = std::min(plan_.rows, args_.dy.rows - row);
    const int64_t last = std::min(feature + plan_.tile, args_.features),
                  blocks = (rows + kTokens - 1) / kTokens;
    parallel_for(args_.exec, blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) sort_block(row, rows, feature, last, b);
    });
    const int64_t strips = plan_.strips(args_), workers = std::min(strips, plan_.threads);
    parallel_for(args_.exec, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker) {
        for (int64_t strip = worker; strip < strips; strip += workers) {
          add_strip(row, rows, feature, last, strip,
                    reinterpret_cast<Sum*>(workers_ + worker * plan_.worker_bytes()));
        }
      }
    });
  }

  // visit(token, feature, value) for the kept entries of a token block whose feature lies in [first, last).
  template <class Visit>
  void each_entry(int64_t row, int64_t tokens, int64_t first, int64_t last, const Visit& visit) const {
    const int64_t k = sampler_.k();
    const bool stratified = sampler_.draw == Draw::kStratified;
    int64_t begin = stratified ? sampler_.strata.find(first) : 0;
    if (saved_.layout.bits) begin = begin / kBlock * kBlock;  // codes are read in blocks
    const int64_t end = stratified ? sampler_.strata.find(last - 1) + 1 : k;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = begin; j < end; j += kBlock) {
        const int64_t stop = std::min(end, j + kBlock);
        int64_t index[kBlock];
        Sum value[kBlock];
        different_row(sampler_, row + t, j, stop, index);
        decode_block<T>(saved_, 0, row + t, j, stop - j, value);
        for (int64_t i = 0; i < stop - j; ++i) {
          if (index[i] < first || index[i] >= last) continue;
          visit(t, index[i] - first, value[i] * sampler_.template weight<Sum>(j + i));
        }
      }
    }
  }

  // Counting sort by feature: count, sum up, place.
  void sort_block(int64_t row, int64_t rows, int64_t first, int64_t last, int64_t block) {
    const int64_t token0 = block * kTokens, tokens = std::min(kTokens, rows - token0);
    int32_t* start = start_ + block * (plan_.tile + 1);
    Sum* value = value_ + block * plan_.capacity;
    uint8_t* token = token_ + block * plan_.capacity;
    std::fill(start, start + plan_.tile + 1, 0);
    each_entry(row + token0, tokens, first, last, [&](int64_t, int64_t f, Sum) { ++start[f + 1]; });
    for (int64_t f = 0; f < last - first; ++f) start[f + 1] += start[f];
    each_entry(row + token0, tokens, first, last, [&](int64_t t, int64_t f, Sum v) {
      const int32_t place = start[f]++;
      value[place] = v;
      token[place] = static_cast<uint8_t>(t);
    });
    std::memmove(start + 1, start, (last - first) * sizeof(int32_t));
    start[0] = 0;
  }

  void add_strip(int64_t row, int64_t rows, int64_t first, int64_t last, int64_t strip, Sum* sums) const {
    constexpr int64_t kWidth = kStrip<Sum>;
    const int64_t o0 = strip * kWidth, width = std::min(kWidth, args_.dy.cols - o0), features = last - first;
    Sum* panel = sums + plan_.tile * kWidth;
    auto* dw = static_cast<T*>(args_.dw) + o0 * args_.features + first;
    std::fill(sums, sums + features * kWidth, Sum{0});
    if (row > 0) {
      for (int64_t o = 0; o < width; ++o) {
        for (int64_t f = 0; f < features; ++f) sums[f * kWidth + o] = widen(dw[o * args_.features + f]);
      }
    }
    for (int64_t block = 0; block * kTokens < rows; ++block) {
      load_panel(row + block * kTokens, std::min(kTokens, rows - block * kTokens), o0, width, panel);
      add_block(start_ + block * (plan_.tile + 1), features, token_ + block * plan_.capacity,
                value_ + block * plan_.capacity, panel, sums);
    }
    for (int64_t o = 0; o < width; ++o) {
      for (int64_t f = 0; f < features; ++f) dw[o * args_.features + f] = narrow<T>(sums[f * kWidth + o]);
    }
  }

  void load_panel(int64_t row, int64_t tokens, int64_t o0, int64_t width, Sum* panel) const {
    const MatrixView& dy = args_.dy;
    for (int64_t t = 0; t < tokens; ++t, panel += kStrip<Sum>) {
      const T* source = static_cast<const T*>(dy.data) + row_offset(dy, row + t) + o0 * dy.col_stride;
      for (int64_t o = 0; o < width; ++o) panel[o] = widen(source[o * dy.col_stride]);
      std::fill(panel + width, panel + kStrip<Sum>, Sum{0});
    }
  }

  const LinearWgradArgs& args_;
  const SavedView& saved_;
  Sampler sampler_;
  Plan<T> plan_;
  Sum* value_;
  int32_t* start_;
  uint8_t* token_;
  char* workers_;
};

}  // namespace

int64_t linear_wgrad_workspace(const LinearWgradArgs& args) {
  if (args.features == 0) return 0;
  int64_t bytes = 0;
  visit_dtype(args.dtype, [&](auto tag) {
    bytes = Plan<typename decltype(tag)::type>(args).bytes();
    return 0;
  });
  return bytes;
}

int linear_wgrad(const LinearWgradArgs& args) {
  if (args.features == 0) return 0;
  const SavedView saved(args.spec, args.dtype, args.dy.rows, args.features, args.saved);
  return visit_dtype(args.dtype, [&](auto tag) {
    Product<typename decltype(tag)::type>(args, saved).run();
    return 0;
  });
}

}  // namespace rad::cpu
