// dW of `different` on tensor cores, loaded as sparse and computed as dense: the kept entries of some rows
// are put among zeros in shared memory, on their way to the product.
#include "cuda/sparse_product.cuh"

#include "cuda/gemm/mma.cuh"
#include "cuda/gemm/sources.cuh"

namespace rad::cuda {
namespace {

using gemm::kDepth;

using Warp = gemm::Shape<256>;
using Rows = gemm::Steps<kDepth>;

template <class T>
struct SparseParams {
  gemm::ListedRows<T> dy;
  SavedView saved;
  gemm::Tiles tiles;
  int64_t features;
  T* dw;  // [dy.cols, features]
  bool vector_dw;
};

// Brings x~ without its weights. A team of threads has a row of the step, a thread a pair of entries at a
// time, which is one Philox call. No two entries of a row meet: each is of a stratum of its own.
template <class T, bool Coded>
class SparseLoader {
 public:
  RAD_DEVICE SparseLoader(const SparseParams<T>& p, const Sampler& sampler, const Rows& steps,
                          int64_t feature)
      : p_(p), sampler_(sampler), steps_(steps) {
    const int64_t last = min(feature + gemm::kFeatures, p.features) - 1;
    last_entry_ = static_cast<int>(sampler.strata.find(last)) + 1;
    pair_ = static_cast<int>(sampler.strata.find(feature)) / 2 + static_cast<int>(threadIdx.x) % kTeamSize;
    size_ = static_cast<int>(sampler.strata.size);
    longer_ = static_cast<int>(sampler.strata.longer);
    feature_ = static_cast<int>(feature);
  }

  // Zeros, and the values of the first pair, which arrive while the step before is multiplied.
  RAD_DEVICE void fetch(int step, char* tile) {
    const gemm::Share<gemm::kFeatures, kDepth, Warp::kThreads> share;
#pragma unroll
    for (int i = 0; i < decltype(share)::kCount; ++i)
      *reinterpret_cast<uint4*>(tile + share.at(i)) = uint4{0, 0, 0, 0};
    if constexpr (!Coded) held_ = values_at(row_of(step), pair_);
  }

  RAD_DEVICE void place(int step, char* tile) {
    __syncthreads();  // the zeros are there
    const int64_t row = row_of(step);
    if (row >= steps_.end(step)) return;
    Vector<T, 2> values = held_;
#pragma unroll 1
    for (int pair = pair_; pair * 2 < last_entry_; pair += kTeamSize) {
      if (Coded || pair != pair_) values = values_at(row, pair);
      const Words words =
          random_words({sampler_.key, sampler_.salt}, sampler_.role, row, static_cast<uint32_t>(pair));
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = index(words, pair * 2 + half) - feature_;
        if (column < 0 || column >= gemm::kFeatures) continue;  // of a tile beside this one
        *reinterpret_cast<T*>(tile + gemm::StepTile::chunk_at(local_row(), column / gemm::kChunk) +
                              column % gemm::kChunk * 2) = values.item[half];
      }
    }
  }

 private:
  static constexpr int kTeamSize = Warp::kThreads / kDepth;

  RAD_DEVICE static int local_row() { return static_cast<int>(threadIdx.x) / kTeamSize; }
  RAD_DEVICE int64_t row_of(int step) const { return steps_.begin(step) + local_row(); }

  // Sampler::index of entry j in 32 bits, since features have no more (sparse_product_possible).
  RAD_DEVICE int index(const Words& words, int j) const {
    const uint64_t word = word64(words, j & 1);
    const auto length = static_cast<uint32_t>(size_ + (j < longer_ ? 1 : 0));
    return j * size_ + min(j, longer_) + static_cast<int>(mulhi64_short<WideProduct>(word, length));
  }

  RAD_DEVICE Vector<T, 2> values_at(int64_t row, int pair) const {
    Vector<T, 2> values{};
    const auto width = static_cast<int>(p_.saved.layout.width);
    const int j = pair * 2;
    if (row >= steps_.rows || j >= last_entry_) return values;
    if constexpr (Coded) {
      const Words noise = dither_call(sampler_.key, sampler_.salt, row, j);
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (j + half < width)
          values.item[half] = narrow<T>(decode_value<T>(p_.saved, noise, 0, row, j + half));
    } else {
      const T* stored = p_.saved.template plane<const T>(0) + row * p_.saved.layout.width + j;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (j + half < width) values.item[half] = stored[half];
    }
    return values;
  }

  const SparseParams<T>& p_;
  const Sampler& sampler_;
  const Rows& steps_;
  int feature_, last_entry_, pair_, size_, longer_;
  Vector<T, 2> held_{};
};

template <class T, bool Coded, bool Copied>
__global__ void __launch_bounds__(Warp::kThreads, Warp::kBlocks)
    sparse_product_kernel(const __grid_constant__ SparseParams<T> p, Sampler plan) {
  Warp warp;
  const Sampler sampler = keyed(plan, p.saved.key());
  const Rows steps(0, p.dy.m.rows);
  for (int64_t number = blockIdx.x; number < p.tiles.count(); number += gridDim.x) {
    int64_t o, f;
    p.tiles.find(number, o, f);
    const int64_t output = o * gemm::kOutputs, feature = f * gemm::kFeatures;
    SparseLoader<T, Coded> b(p, sampler, steps, feature);
    if constexpr (Copied) {
      const gemm::AlignedRows<T> rows{static_cast<const T*>(p.dy.m.data), p.dy.m.stride[2], p.dy.m.cols};
      gemm::CopyLoader<T, false, gemm::kOutputs, kDepth, Warp::kThreads> a(rows, nullptr, steps, output);
      gemm::multiply<T>(steps, 1.f, a, b, warp);
    } else {
      gemm::StagedLoader<T, gemm::ListedRows<T>, gemm::kOutputs, kDepth, Warp::kThreads> a(p.dy, steps,
                                                                                           output);
      gemm::multiply<T>(steps, 1.f, a, b, warp);
    }
    const auto weight = [&](int64_t at) {
      return at < p.features ? sampler.template weight<float>(sampler.strata.find(at)) : 0.f;
    };
    gemm::store(warp, weight, output, feature, p.dy.m.cols, p.features, p.vector_dw, p.dw);
  }
}

template <class T, bool Coded, bool Copied>
int launch_sparse(const LinearWgradArgs& args, const SparseParams<T>& params) {
  const int64_t resident = int64_t{multiprocessors()} * Warp::kBlocks;
  return launch(sparse_product_kernel<T, Coded, Copied>,
                {dim3(blocks_for(params.tiles.count(), 1, resident)), dim3(Warp::kThreads),
                 gemm::kSharedBytes, args.exec.stream},
                params, plan_sample(args.spec, args.features));
}

template <class T>
int run(const LinearWgradArgs& args) {
  const SavedView saved(args.spec, args.dtype, args.dy.rows, args.features, args.saved);
  const MatrixView& dy = args.dy;
  const bool vectors = rows_aligned(dy, sizeof(T), kVectorBytes);
  const SparseParams<T> params{{dy, nullptr, nullptr, vectors},
                               saved,
                               gemm::Tiles(dy.cols, args.features),
                               args.features,
                               static_cast<T*>(args.dw),
                               aligned(args.dw, kVectorBytes) && args.features % kPerVector<T> == 0};
  const bool copied = vectors && dy.size[2] == dy.rows;
  if (saved.layout.bits)
    return copied ? launch_sparse<T, true, true>(args, params) : launch_sparse<T, true, false>(args, params);
  return copied ? launch_sparse<T, false, true>(args, params) : launch_sparse<T, false, false>(args, params);
}

}  // namespace

bool sparse_product_possible(const LinearWgradArgs& args) {
  return item_size(args.dtype) == 2 && args.spec.draw == Draw::kStratified &&
         args.features <= INT32_MAX - gemm::kFeatures;
}

int sparse_product(const LinearWgradArgs& args) {
  return args.dtype == DType::kBF16 ? run<bf16>(args) : run<f16>(args);
}

}  // namespace rad::cuda
