// dW of `rows` and `tile_rows` in one pass over the kept rows: what the tensor-core kernel is compared with.
// Where speed matters a CPU gathers dy and leaves the product to its BLAS.
#include <algorithm>

#include "core/matrix_view.h"
#include "cpu/codes.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

constexpr int64_t kOutputs = 32;  // whose sums with kBlock features are held at a time

template <class T>
class RowsProduct {
 public:
  RowsProduct(const RowsWgradArgs& args, const SavedView& saved)
      : args_(args),
        saved_(saved),
        weights_(row_weights(Sampler(saved.key, saved.salt, args.spec, args.dy.rows))),
        weight_(args.spec.draw == Draw::kNorm ? saved.weight() : nullptr) {}

  void run(int64_t output) const {
    const int64_t count = std::min(kOutputs, args_.dy.cols - output);
    for (int64_t tile = 0; tile < saved_.layout.tiles; ++tile) {
      for_each_block(saved_.layout.tile_width(tile),
                     [&](int64_t begin, int64_t width) { add_block(output, count, tile, begin, width); });
    }
  }

 private:
  void add_block(int64_t output, int64_t count, int64_t tile, int64_t begin, int64_t width) const {
    float sums[kOutputs][kBlock] = {};
    float x[kBlock];
    const int64_t lines = saved_.layout.lines;
    for (int64_t i = 0; i < lines; ++i) {
      if (i == weights_.split)
        for (auto& row : sums)
          for (float& sum : row) sum *= weights_.ratio;
      decode_block<T>(saved_, tile, i, begin, width, x);
      for (int64_t f = 0; f < width; ++f) x[f] = widen(narrow<T>(x[f]));
      const T* dy =
          static_cast<const T*>(args_.dy.data) + row_offset(args_.dy, args_.index[tile * lines + i]);
      for (int64_t o = 0; o < count; ++o) {
        float value = widen(dy[(output + o) * args_.dy.col_stride]);
        if (weight_) value = widen(narrow<T>(value * weight_[i]));
        for (int64_t f = 0; f < width; ++f) sums[o][f] += value * x[f];
      }
    }
    T* dw = static_cast<T*>(args_.dw) + output * args_.features + tile * saved_.layout.width + begin;
    for (int64_t o = 0; o < count; ++o)
      for (int64_t f = 0; f < width; ++f) dw[o * args_.features + f] = narrow<T>(sums[o][f] * weights_.alpha);
  }

  const RowsWgradArgs& args_;
  const SavedView& saved_;
  RowWeights weights_;
  const float* weight_;
};

template <class T>
void run_rows(const RowsWgradArgs& args) {
  const SavedView saved(args.spec, args.dtype, args.dy.rows, args.features, args.saved);
  const RowsProduct<T> product(args, saved);
  parallel_for(args.exec, (args.dy.cols + kOutputs - 1) / kOutputs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) product.run(block * kOutputs);
  });
}

}  // namespace

int rows_wgrad(const RowsWgradArgs& args) {
  if (args.features == 0) return 0;
  switch (args.dtype) {
    case DType::kBF16:
      run_rows<BFloat16>(args);
      return 0;
    case DType::kF16:
      run_rows<Half>(args);
      return 0;
    default:
      return 1;
  }
}

bool rows_wgrad_has_wgmma(const RowsWgradArgs&) { return false; }

}  // namespace rad::cpu
