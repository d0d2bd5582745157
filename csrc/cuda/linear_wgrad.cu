// dW = dy^T X~ for `different`, where tensor cores do not take it (sparse_product.cu): each block decodes the
// sampled entries of its features, some tokens at a time, into a dense tile of shared memory and multiplies.
// The dense estimate never exists beyond that tile.
#include "cuda/saved.cuh"
#include "cuda/sparse_product.cuh"

namespace rad::cuda {
namespace {

constexpr int kOutputs = 64, kFeatures = 64, kTokens = 32;  // of a block, and per step
constexpr int kPerThread = 4;                               // outputs and features of a thread
constexpr int kScanned = 64;                                // entries of a token per round of the scan
static_assert((kOutputs / kPerThread) * (kFeatures / kPerThread) == kThreads);

template <class T>
struct WgradParams {
  MatrixView dy;
  int64_t features;
  SavedView saved;
  T* dw;  // [dy.cols, features]
  bool vector_dy, vector_dw;
};

// Entries j and j + 1 (j even) of a token, as far as there are k.
template <class T, bool Coded>
struct Pair {
  const WgradParams<T>& p;
  int64_t row, j;
  Words noise;

  RAD_DEVICE Pair(const WgradParams<T>& p_, const Sampler& sampler, int64_t row_, int64_t j_)
      : p(p_), row(row_), j(j_), noise() {
    if constexpr (Coded) noise = dither_call(sampler.key, sampler.salt, row, j);
  }
  RAD_DEVICE Accumulate<T> value(int half) const {
    if constexpr (Coded) return decode_value<T>(p.saved, noise, 0, row, j + half);
    return widen(p.saved.template plane<const T>(0)[row * p.saved.layout.width + j + half]);
  }
};

template <class Sum>
struct alignas(kVectorBytes) Tiles {
  Sum dy[kTokens][kOutputs];
  Sum x[kTokens][kFeatures];
};

// What a block works on.
struct Window {
  int64_t output, feature;          // first of the block's
  int64_t first_entry, last_entry;  // strata that meet the features (all entries, drawn with replacement)
};

template <class T>
RAD_DEVICE void load_dy(const WgradParams<T>& p, const Window& w, int64_t token,
                        Accumulate<T> (&tile)[kTokens][kOutputs]) {
  constexpr int kCount = kPerVector<T>, kChunks = kOutputs / kCount;
  const T* dy = static_cast<const T*>(p.dy.data);
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * kChunks; i += kThreads) {
    const int t = i / kChunks, c = i % kChunks * kCount;
    const int64_t r = token + t, o = w.output + c;
    Vector<T, kCount> values;
    if (r < p.dy.rows && p.vector_dy && o + kCount <= p.dy.cols) {
      values = *reinterpret_cast<const Vector<T, kCount>*>(dy + offset_of_row(p.dy, r) + o);
    } else {
      const int64_t row = r < p.dy.rows ? offset_of_row(p.dy, r) : 0;
#pragma unroll
      for (int e = 0; e < kCount; ++e)
        values.item[e] =
            r < p.dy.rows && o + e < p.dy.cols ? dy[row + (o + e) * p.dy.col_stride] : narrow<T>(0);
    }
#pragma unroll
    for (int e = 0; e < kCount; ++e) tile[t][c + e] = widen(values.item[e]);
  }
}

// One entry per stratum: no two meet, so the threads share the entries out as they come.
template <class T, bool Coded>
RAD_DEVICE void decode_stratified(const WgradParams<T>& p, const Sampler& sampler, const Window& w,
                                  int64_t token, Accumulate<T> (&tile)[kTokens][kFeatures]) {
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * kFeatures; i += kThreads)
    tile[i / kFeatures][i % kFeatures] = 0;
  __syncthreads();
  const int64_t first_pair = w.first_entry / 2;
  const int pairs = static_cast<int>((w.last_entry + 1) / 2 - first_pair);
  for (int i = static_cast<int>(threadIdx.x); i < kTokens * pairs; i += kThreads) {
    const int t = i / pairs;
    const int64_t r = token + t, pair = first_pair + i % pairs;
    if (r >= p.dy.rows) break;
    const Words words = sampler.call(r, pair);
    const Pair<T, Coded> entries(p, sampler, r, pair * 2);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t j = pair * 2 + half;
      if (j < w.first_entry || j >= w.last_entry) continue;
      const int64_t column = sampler.index(words, j) - w.feature;
      if (column >= 0 && column < kFeatures) tile[t][column] = entries.value(half);
    }
  }
}

// Any entry may fall anywhere: all are drawn into `drawn`, then each thread adds those of its own eight
// features of one token in stored order, so that the sum of duplicates has one order.
template <class T, bool Coded>
RAD_DEVICE void decode_scanned(const WgradParams<T>& p, const Sampler& sampler, const Window& w,
                               int64_t token, int (&drawn)[kTokens][kScanned + 1],
                               Accumulate<T> (&tile)[kTokens][kFeatures]) {
  constexpr int kThreadsPerToken = kThreads / kTokens, kOwn = kFeatures / kThreadsPerToken;
  const int t = static_cast<int>(threadIdx.x) / kThreadsPerToken,
            first_own = static_cast<int>(threadIdx.x) % kThreadsPerToken * kOwn;
  const int64_t k = sampler.k(), r = token + t;
  for (int f = 0; f < kOwn; ++f) tile[t][first_own + f] = 0;
  for (int64_t base = 0; base < k; base += kScanned) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kTokens * kScanned / 2; i += kThreads) {
      const int row = i / (kScanned / 2), entry = i % (kScanned / 2) * 2;
      const Words words = sampler.call(token + row, (base + entry) / 2);
      for (int half = 0; half < 2; ++half) {
        const int64_t column = sampler.index(words, base + entry + half) - w.feature;
        const bool here = base + entry + half < k && column >= 0 && column < kFeatures;
        drawn[row][entry + half] = here ? static_cast<int>(column) : -1;
      }
    }
    __syncthreads();
    for (int i = 0; i < kScanned; ++i) {
      const int column = drawn[t][i];
      if (column / kOwn * kOwn == first_own && column >= 0 && r < p.dy.rows)
        tile[t][column] += Pair<T, Coded>(p, sampler, r, base + i / 2 * 2).value(i % 2);
    }
  }
}

template <class T>
RAD_DEVICE void store(const WgradParams<T>& p, const Sampler& sampler, int64_t output, int64_t feature,
                      const Accumulate<T> (&sums)[kPerThread][kPerThread]) {
  Accumulate<T> weight[kPerThread];
#pragma unroll
  for (int f = 0; f < kPerThread; ++f)
    weight[f] = feature + f < p.features
                    ? sampler.template weight<Accumulate<T>>(sampler.strata.find(feature + f))
                    : 0;
#pragma unroll
  for (int o = 0; o < kPerThread; ++o) {
    if (output + o >= p.dy.cols) return;
    T* to = p.dw + (output + o) * p.features + feature;
    Vector<T, kPerThread> values;
#pragma unroll
    for (int f = 0; f < kPerThread; ++f) values.item[f] = narrow<T>(sums[o][f] * weight[f]);
    if (p.vector_dw && feature + kPerThread <= p.features) {
      *reinterpret_cast<Vector<T, kPerThread>*>(to) = values;
    } else {
#pragma unroll
      for (int f = 0; f < kPerThread; ++f)
        if (feature + f < p.features) to[f] = values.item[f];
    }
  }
}

template <class T>
constexpr int kResidentBlocks = sizeof(T) == 8 ? kResident : 3;

template <class T, bool Stratified, bool Coded>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<T>)
    linear_wgrad_kernel(WgradParams<T> p, Sampler plan) {
  using Sum = Accumulate<T>;
  CUDA_SHARED(Tiles<Sum>, tiles);
  const Sampler sampler = keyed(plan, p.saved.key());
  const int64_t feature_tiles = (p.features + kFeatures - 1) / kFeatures;
  Window w;
  w.output = blockIdx.x / feature_tiles * kOutputs;
  w.feature = blockIdx.x % feature_tiles * kFeatures;
  const int64_t last_feature = min(w.feature + kFeatures, p.features) - 1;
  w.first_entry = Stratified ? sampler.strata.find(w.feature) : 0;
  w.last_entry = Stratified ? sampler.strata.find(last_feature) + 1 : sampler.k();

  const int own_output = static_cast<int>(threadIdx.x) / (kFeatures / kPerThread) * kPerThread;
  const int own_feature = static_cast<int>(threadIdx.x) % (kFeatures / kPerThread) * kPerThread;
  Sum sums[kPerThread][kPerThread] = {};
  for (int64_t token = 0; token < p.dy.rows; token += kTokens) {
    load_dy(p, w, token, tiles.dy);
    if constexpr (Stratified) {
      decode_stratified<T, Coded>(p, sampler, w, token, tiles.x);
    } else {
      CUDA_SHARED(int[kTokens][kScanned + 1], drawn);
      decode_scanned<T, Coded>(p, sampler, w, token, drawn, tiles.x);
    }
    __syncthreads();
#pragma unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const auto dy = *reinterpret_cast<const Vector<Sum, kPerThread>*>(&tiles.dy[t][own_output]);
      const auto x = *reinterpret_cast<const Vector<Sum, kPerThread>*>(&tiles.x[t][own_feature]);
#pragma unroll
      for (int o = 0; o < kPerThread; ++o)
#pragma unroll
        for (int f = 0; f < kPerThread; ++f) sums[o][f] += dy.item[o] * x.item[f];
    }
    __syncthreads();
  }
  store(p, sampler, w.output + own_output, w.feature + own_feature, sums);
}

template <class T, bool Coded>
int launch_wgrad(const LinearWgradArgs& args, const WgradParams<T>& params) {
  const int64_t tiles =
      ((args.dy.cols + kOutputs - 1) / kOutputs) * ((args.features + kFeatures - 1) / kFeatures);
  const auto kernel = args.spec.draw == Draw::kStratified ? linear_wgrad_kernel<T, true, Coded>
                                                          : linear_wgrad_kernel<T, false, Coded>;
  return launch(kernel, {dim3(static_cast<unsigned>(tiles)), dim3(kThreads), 0, args.exec.stream}, params,
                plan_sample(args.spec, args.features));
}

}  // namespace

int64_t linear_wgrad_workspace(const LinearWgradArgs&) { return 0; }

int linear_wgrad(const LinearWgradArgs& args) {
  if (args.dy.cols == 0 || args.features == 0) return 0;
  if (sparse_product_possible(args)) return sparse_product(args);
  const SavedView saved(args.spec, args.dtype, args.dy.rows, args.features, args.saved);
  const int64_t item = item_size(args.dtype);
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const WgradParams<T> params{args.dy,
                                args.features,
                                saved,
                                static_cast<T*>(args.dw),
                                rows_aligned(args.dy, item, kVectorBytes),
                                aligned(args.dw, item * kPerThread) && args.features % kPerThread == 0};
    return saved.layout.bits ? launch_wgrad<T, true>(args, params) : launch_wgrad<T, false>(args, params);
  });
}

}  // namespace rad::cuda
