#include "core/matrix_view.h"
#include "cpu/codes.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

constexpr int64_t kStrip = 64;              // outputs that one thread accumulates at a time
constexpr int64_t kTileBytes = 1 << 19;     // of fp32/fp64 sums per thread

template <class T>
struct Tile {
  static constexpr int64_t kFeatures = kTileBytes / (kStrip * static_cast<int64_t>(sizeof(Accumulate<T>)));
};

int64_t strip_count(const LinearWgradArgs& args) { return (args.dy.cols + kStrip - 1) / kStrip; }

// Sums of one strip of outputs over a tile of features, held feature by feature.
template <class T>
void accumulate_tile(const LinearWgradArgs& args, const SavedView& saved, const Sampler& sampler, int64_t strip, int64_t first, int64_t last,
                     Accumulate<T>* sums) {
  using Sum = Accumulate<T>;
  const int64_t k = sampler.k(), o0 = strip * kStrip, width = std::min(kStrip, args.dy.cols - o0);
  const bool stratified = sampler.draw == Draw::kStratified;
  const int64_t j0 = stratified ? sampler.strata.find(first) : 0;
  const int64_t j1 = stratified ? sampler.strata.find(last - 1) + 1 : k;
  std::fill(sums, sums + (last - first) * kStrip, Sum{0});
  for (int64_t r = 0; r < args.dy.rows; ++r) {
    const T* dy = static_cast<const T*>(args.dy.data) + row_offset(args.dy, r) + o0 * args.dy.col_stride;
    Sum line[kStrip];
    for (int64_t o = 0; o < width; ++o) line[o] = widen(dy[o * args.dy.col_stride]);
    for (int64_t j = j0 / kBlock * kBlock; j < j1; j += kBlock) {
      const int64_t stop = std::min(k, j + kBlock);
      Sum values[kBlock];
      int64_t index[kBlock];
      decode_block<T>(saved, 0, r, j, stop - j, values);
      different_row(sampler, r, j, stop, index);
      for (int64_t i = j; i < stop; ++i) {
        const int64_t feature = index[i - j];
        if (feature < first || feature >= last) continue;
        const Sum value = values[i - j] * sampler.template weight<Sum>(i);
        Sum* sum = sums + (feature - first) * kStrip;
        for (int64_t o = 0; o < width; ++o) sum[o] += line[o] * value;
      }
    }
  }
}

template <class T>
void wgrad_strips(const LinearWgradArgs& args, const SavedView& saved, const Sampler& sampler) {
  using Sum = Accumulate<T>;
  auto* dw = static_cast<T*>(args.dw);
  const int64_t strips = strip_count(args), workers = std::min<int64_t>(strips, args.exec.threads);
  parallel_for(args.exec, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      Sum* sums = reinterpret_cast<Sum*>(static_cast<char*>(args.workspace) + worker * kTileBytes);
      for (int64_t strip = worker; strip < strips; strip += workers) {
        const int64_t o0 = strip * kStrip, width = std::min(kStrip, args.dy.cols - o0);
        for (int64_t first = 0; first < args.features; first += Tile<T>::kFeatures) {
          const int64_t last = std::min(args.features, first + Tile<T>::kFeatures);
          accumulate_tile<T>(args, saved, sampler, strip, first, last, sums);
          for (int64_t o = 0; o < width; ++o) {
            for (int64_t f = first; f < last; ++f) {
              dw[(o0 + o) * args.features + f] = narrow<T>(sums[(f - first) * kStrip + o]);
            }
          }
        }
      }
    }
  });
}

}  // namespace

int64_t linear_wgrad_workspace(const LinearWgradArgs& args) {
  return std::min<int64_t>(strip_count(args), args.exec.threads) * kTileBytes;
}

int linear_wgrad(const LinearWgradArgs& args) {
  const SavedView saved(args.spec, args.dtype, args.dy.rows, args.features, args.saved);
  const Sampler sampler(saved.key, saved.salt, args.spec, args.features);
  return visit_dtype(args.dtype, [&](auto tag) {
    wgrad_strips<typename decltype(tag)::type>(args, saved, sampler);
    return 0;
  });
}

}  // namespace rad::cpu
