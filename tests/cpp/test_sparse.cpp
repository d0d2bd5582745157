// Kernels with offsets beyond 32 bits, on a reserved range of addresses of which few pages are touched. That
// range lies outside the checked heap, so only the fast build has these tests.
#include <sys/mman.h>

#include "kernel_cases.h"

using namespace rad;
using namespace testing;

namespace {

constexpr int64_t kStride = (int64_t{1} << 32) + 64;  // items from row to row
constexpr int64_t kRows = 3, kCols = 40;

// Three rows of floats, 16 GiB apart.
class SparseMatrix {
 public:
  SparseMatrix() : bytes_(static_cast<size_t>(kRows * kStride) * sizeof(float)) {
    void* p =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw Failure("cannot reserve 48 GiB of addresses");
    data_ = static_cast<float*>(p);
    Random random(71);
    for (int64_t r = 0; r < kRows; ++r)
      for (int64_t c = 0; c < kCols; ++c) data_[r * kStride + c] = random.eighth();
  }
  ~SparseMatrix() { munmap(data_, bytes_); }
  SparseMatrix(const SparseMatrix&) = delete;
  SparseMatrix& operator=(const SparseMatrix&) = delete;

  float* row(int64_t r) const { return data_ + r * kStride; }
  MatrixView view() const { return {data_, kRows, kCols, 1, {1, 1, kRows}, {0, 0, kStride}}; }
  // The same numbers, rows one after another.
  std::vector<float> dense() const {
    std::vector<float> v;
    for (int64_t r = 0; r < kRows; ++r) v.insert(v.end(), data_ + r * kStride, data_ + r * kStride + kCols);
    return v;
  }

 private:
  size_t bytes_;
  float* data_;
};

std::vector<char> packed(const SketchSpec& spec, const MatrixView& x) {
  auto saved = fresh_saved(spec, DType::kF32, kRows, kCols);
  if (spec.draw == Draw::kNorm)
    run_cuda<NormSampleArgs>(cuda::norm_sample_workspace, cuda::norm_sample,
                             {{}, spec, DType::kF32, x, kSalt, saved.data(), nullptr});
  run_cuda<PackArgs>(cuda::pack_workspace, cuda::pack,
                     {{}, spec, DType::kF32, x, kCols, kSalt, saved.data(), nullptr});
  return saved;
}

TEST(sparse_pack) {
  const SparseMatrix x;
  const auto dense = x.dense();
  for (const Combination& c : kCombinations)
    for (const int bits : {0, 4}) {
      if (c.sampling == Sampling::kProject) continue;  // it packs what a product has made contiguous
      EXPECT_SAME(packed(c.spec(1, 2, bits), x.view()),
                  packed(c.spec(1, 2, bits), contiguous_matrix(dense.data(), kRows, kCols)));
    }
}

// Rows of some 6e9 columns, of which only those are touched that a sample should have.
TEST(sparse_pack_of_different_columns) {
  constexpr int64_t kFeatures = (int64_t{3} << 31) + 70001, kLines = 2;
  constexpr auto kBytes = static_cast<size_t>(kLines * kFeatures) * sizeof(uint16_t);
  for (const Draw draw : kDraws) {
    void* p =
        mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) throw Failure("cannot reserve 24 GiB of addresses");
    auto* x = static_cast<uint16_t*>(p);
    const SketchSpec spec{1, 1000000, Sampling::kDifferent, draw, 0};
    const ReferenceSampler sampler{spec, kKey, kSalt, kFeatures};
    std::vector<uint16_t> want;
    int64_t begin = 0, beyond = 0;
    for (int64_t r = 0; r < kLines; ++r)
      for (int64_t i = begin = 0; i < sampler.k(); begin += sampler.stratum_size(i++)) {
        const uint64_t word = ReferenceSampler::word(sampler.call(2, r, i / 2), i % 2);
        const int64_t column = draw == Draw::kStratified
                                   ? begin + ReferenceSampler::scaled(word, sampler.stratum_size(i))
                                   : ReferenceSampler::scaled(word, kFeatures);
        beyond += column >> 31 != 0;
        want.push_back(static_cast<uint16_t>((column * 40503 + r) >> 4));
        x[r * kFeatures + column] = want.back();
      }
    EXPECT(beyond > sampler.k() / 2);
    auto saved = fresh_saved(spec, DType::kBF16, kLines, kFeatures);
    const MatrixView view{x, kLines, kFeatures, 1, {1, 1, kLines}, {0, 0, kFeatures}};
    run_cuda<PackArgs>(cuda::pack_workspace, cuda::pack,
                       {{}, spec, DType::kBF16, view, kFeatures, kSalt, saved.data(), nullptr});
    std::vector<uint16_t> got(want.size());
    std::memcpy(got.data(), saved.data(), got.size() * sizeof(uint16_t));
    EXPECT_SAME(got, want);
    munmap(p, kBytes);
  }
}

// Images 16 GiB apart: rows of dy are counted beyond 2^31.
TEST(sparse_conv_wgrad) {
  constexpr int64_t kPositions = 4, kItems = 8;  // channels and outputs
  const SparseMatrix far;
  const DType dtype = DType::kBF16;
  const SketchSpec spec{1, 2, Sampling::kRows, Draw::kStratified, 0};
  const Matrix x(dtype, Form::kContiguous, kRows * kPositions, kItems, 72);
  const Matrix dy(dtype, Form::kContiguous, kRows * kPositions, kItems, 73);
  const Packed saved(spec, dtype, x);
  constexpr size_t kImage = kPositions * kItems * 2;
  for (int64_t image = 0; image < kRows; ++image)
    std::memcpy(far.row(image), static_cast<const char*>(dy.host().data) + image * kImage, kImage);
  const auto index = ReferenceSampler{spec, kKey, kSalt, kRows * kPositions}.list();
  const auto wgrad = [&](const void* data, int64_t stride) {
    std::vector<uint16_t> dw(kItems * kItems * 3);
    ConvWgradArgs a{};
    a.spec = spec;
    a.dtype = dtype;
    a.images = kRows;
    a.channels = a.outputs = kItems;
    a.groups = 1;
    for (ConvAxis& axis : a.axis) axis = {1, 1, 1, 1, 0, 0, 1, 0};
    a.axis[2] = {kPositions, kPositions, 3, 1, 1, -1, 1, kItems};
    a.dy = data;
    a.dy_image = stride;
    a.dy_output = 1;
    a.saved = saved.host.data();
    a.index = index.data();
    a.dw = dw.data();
    a.dw_output = 3 * kItems;
    a.dw_channel = 3;
    EXPECT(cuda::conv_wgrad_workspace(a) > 0);
    run_cuda<ConvWgradArgs>(cuda::conv_wgrad_workspace, cuda::conv_wgrad, a);
    return dw;
  };
  EXPECT_SAME(wgrad(far.row(0), 2 * kStride), wgrad(dy.host().data, kPositions * kItems));
}

TEST(sparse_gather) {
  const SparseMatrix x;
  const std::vector<int64_t> index{2, 0, 1, 2};
  const auto dense = x.dense();
  for (const double scale : {1.0, 3.0}) {
    std::vector<float> far(index.size() * kCols), near(far);
    EXPECT(cuda::gather(
               {{}, DType::kF32, false, x.view(), index.data(), 4, 0, {1, scale}, nullptr, far.data()}) == 0);
    EXPECT(cuda::gather({{},
                         DType::kF32,
                         false,
                         contiguous_matrix(dense.data(), kRows, kCols),
                         index.data(),
                         4,
                         0,
                         {1, scale},
                         nullptr,
                         near.data()}) == 0);
    EXPECT_SAME(far, near);
  }
}

TEST(sparse_wgrad) {
  const SparseMatrix dy;
  const auto dense = dy.dense();
  const SketchSpec spec{1, 3, Sampling::kDifferent, Draw::kStratified, 0};
  const Matrix x(DType::kF32, Form::kContiguous, kRows, 20, 72);
  const Packed saved(spec, DType::kF32, x);
  std::vector<float> far(kCols * 20), near(far);
  EXPECT(cuda::linear_wgrad({{}, spec, DType::kF32, dy.view(), 20, saved.host.data(), far.data(), nullptr}) ==
         0);
  EXPECT(cuda::linear_wgrad({{},
                             spec,
                             DType::kF32,
                             contiguous_matrix(dense.data(), kRows, kCols),
                             20,
                             saved.host.data(),
                             near.data(),
                             nullptr}) == 0);
  EXPECT_SAME(far, near);
}

}  // namespace
