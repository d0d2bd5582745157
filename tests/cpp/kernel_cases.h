// Inputs for the kernel tests: matrices of every item type and memory layout, and a sampler written a second
// time.
#pragma once
#include <cmath>
#include <string>

#include "core/dtype.h"
#include "core/layout.h"
#include "core/matrix_view.h"
#include "device.h"
#include "kernels.h"

namespace testing {

constexpr rad::DType kDTypes[] = {rad::DType::kF32, rad::DType::kF64, rad::DType::kBF16, rad::DType::kF16};
constexpr int kBits[] = {8, 4, 2, 1};

// Every sampling with its draws; `project` draws signs.
struct Combination {
  rad::Sampling sampling;
  rad::Draw draw;
  rad::SketchSpec spec(int64_t num, int64_t den, int bits = 0) const {
    return {num, den, sampling, draw, bits};
  }
};
constexpr Combination kCombinations[] = {{rad::Sampling::kRows, rad::Draw::kStratified},
                                         {rad::Sampling::kRows, rad::Draw::kWithReplacement},
                                         {rad::Sampling::kRows, rad::Draw::kWithoutReplacement},
                                         {rad::Sampling::kRows, rad::Draw::kNorm},
                                         {rad::Sampling::kSame, rad::Draw::kStratified},
                                         {rad::Sampling::kSame, rad::Draw::kWithReplacement},
                                         {rad::Sampling::kSame, rad::Draw::kWithoutReplacement},
                                         {rad::Sampling::kDifferent, rad::Draw::kStratified},
                                         {rad::Sampling::kDifferent, rad::Draw::kWithReplacement},
                                         {rad::Sampling::kTileRows, rad::Draw::kStratified},
                                         {rad::Sampling::kTileRows, rad::Draw::kWithReplacement},
                                         {rad::Sampling::kTileRows, rad::Draw::kWithoutReplacement},
                                         {rad::Sampling::kProject, rad::Draw::kStratified}};
// Those of `different`.
constexpr rad::Draw kDraws[] = {rad::Draw::kStratified, rad::Draw::kWithReplacement};

inline bool by_row(const rad::SketchSpec& spec) {
  return spec.sampling == rad::Sampling::kRows || spec.sampling == rad::Sampling::kTileRows;
}

// ---- items ----------------------------------------------------------------------------------------------

inline void set_item(rad::DType dtype, void* base, size_t i, double value) {
  rad::visit_dtype(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    static_cast<T*>(base)[i] = rad::narrow<T>(static_cast<rad::Accumulate<T>>(value));
    return 0;
  });
}

inline double get_item(rad::DType dtype, const void* base, size_t i) {
  double value = 0;
  rad::visit_dtype(dtype, [&](auto tag) {
    value = rad::widen(static_cast<const typename decltype(tag)::type*>(base)[i]);
    return 0;
  });
  return value;
}

// What a sum is rounded to when it is stored.
inline double rounded(rad::DType dtype, double value) {
  double storage = 0;
  set_item(dtype, &storage, 0, value);
  return get_item(dtype, &storage, 0);
}

// ---- matrices -------------------------------------------------------------------------------------------

enum class Form { kContiguous, kShifted, kPadded, kTransposed, kExpanded, kFolded };
constexpr Form kForms[] = {Form::kContiguous, Form::kShifted,  Form::kPadded,
                           Form::kTransposed, Form::kExpanded, Form::kFolded};

// A matrix in host memory with a twin on the device.
class Matrix {
 public:
  Matrix(rad::DType dtype, Form form, int64_t rows, int64_t cols, uint64_t seed)
      : dtype_(dtype),
        shape_(make_view(form, rows, cols)),
        shift_(form == Form::kShifted ? 1 : 0),
        storage_(bytes(form, rows, cols)),
        device_(storage_.size()) {
    Random random(seed);
    const size_t item = static_cast<size_t>(rad::item_size(dtype));
    for (size_t i = 0; i < storage_.size() / item; ++i) set_item(dtype, storage_.data(), i, random.eighth());
    upload(device_.data(), storage_.data(), storage_.size());
  }

  rad::MatrixView host() const { return view_of(storage_.data()); }
  rad::MatrixView device() const { return view_of(device_.data()); }
  double at(int64_t r, int64_t c) const {
    const rad::MatrixView view = host();
    // The digits of r once more, not by row_offset.
    const int64_t plane = view.size[1] * view.size[2],
                  digit[3] = {r / plane, r % plane / view.size[2], r % view.size[2]};
    const int64_t offset = digit[0] * view.stride[0] + digit[1] * view.stride[1] + digit[2] * view.stride[2] +
                           c * view.col_stride;
    return get_item(dtype_, view.data, static_cast<size_t>(offset));
  }

 private:
  static constexpr int64_t kPad = 5;

  static rad::MatrixView make_view(Form form, int64_t rows, int64_t cols) {
    rad::MatrixView m{nullptr, rows, cols, 1, {1, 1, rows}, {0, 0, cols}};
    if (form == Form::kPadded) m.stride[2] = cols + kPad;
    if (form == Form::kExpanded) m.stride[2] = 0;
    if (form == Form::kTransposed) {
      m.stride[2] = 1;
      m.col_stride = rows;
    }
    if (form == Form::kFolded && rows % 2 == 0 &&
        rows > 0) {  // rows = (2, rows / 2) stored the other way round
      m.size[1] = 2;
      m.size[2] = rows / 2;
      m.stride[1] = cols;
      m.stride[2] = 2 * cols;
    }
    return m;
  }
  size_t bytes(Form form, int64_t rows, int64_t cols) const {
    const int64_t stored_rows = form == Form::kExpanded ? 1 : rows;
    const int64_t row = cols + (form == Form::kPadded ? kPad : 0);
    return static_cast<size_t>((stored_rows * row + shift_) * rad::item_size(dtype_));
  }
  rad::MatrixView view_of(const char* base) const {
    rad::MatrixView view = shape_;
    view.data = base + shift_ * rad::item_size(dtype_);
    return view;
  }

  rad::DType dtype_;
  rad::MatrixView shape_;
  int64_t shift_;
  std::vector<char> storage_;
  Device<char> device_;
};

// ---- samples: the definition once more, in plain arithmetic -----------------------------------------------

// Philox4x32-10, as its paper has it.
inline std::vector<uint32_t> reference_philox(std::vector<uint32_t> c, uint64_t key) {
  uint64_t k0 = key & 0xFFFFFFFF, k1 = key >> 32;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
    c = {static_cast<uint32_t>((b >> 32) ^ c[1] ^ k0), static_cast<uint32_t>(b),
         static_cast<uint32_t>((a >> 32) ^ c[3] ^ k1), static_cast<uint32_t>(a)};
    k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF;
    k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF;
  }
  return c;
}

struct ReferenceSampler {
  rad::SketchSpec spec;
  uint64_t key, salt;
  int64_t n;

  int64_t k() const {
    return static_cast<int64_t>(std::ceil(static_cast<long double>(n) * spec.num / spec.den));
  }
  int64_t stratum_size(int64_t i) const { return n / k() + (i < n % k()); }
  int64_t stratum_begin(int64_t i) const {
    int64_t begin = 0;
    for (int64_t s = 0; s < i; ++s) begin += stratum_size(s);
    return begin;
  }
  // Call `inner` of a line in the stream `role`; small coordinates only.
  std::vector<uint32_t> call(uint32_t role, int64_t line, int64_t inner) const {
    return reference_philox(
        {static_cast<uint32_t>(inner), static_cast<uint32_t>(line), role << 24, static_cast<uint32_t>(salt)},
        key);
  }
  static uint64_t word(const std::vector<uint32_t>& words, int64_t half) {
    return static_cast<uint64_t>(words[static_cast<size_t>(half * 2 + 1)]) << 32 |
           words[static_cast<size_t>(half * 2)];
  }
  static int64_t scaled(uint64_t word, int64_t range) {
    return static_cast<int64_t>((static_cast<unsigned __int128>(word) * static_cast<uint64_t>(range)) >> 64);
  }
  // Number i of a line: the row under `different`, the tile under `tile_rows`, else 0.
  int64_t index(int64_t line, int64_t i) const {
    if (spec.draw == rad::Draw::kWithoutReplacement) return permuted(line, i);
    const uint64_t bits = word(call(by_row(spec) ? 1 : 2, line, i / 2), i % 2);
    if (spec.draw == rad::Draw::kWithReplacement) return scaled(bits, n);
    return stratum_begin(i) + scaled(bits, stratum_size(i));
  }
  // Twelve Feistel rounds on 2h bits, walked until below n, then rotated.
  int64_t permuted(int64_t line, int64_t i) const {
    int h = 1;
    while (std::pow(4.0, h) < static_cast<double>(n)) ++h;
    const int64_t side = int64_t{1} << h;
    int64_t position = i;
    do {
      int64_t left = position / side, right = position % side;
      for (int round = 0; round < 12; ++round) {
        auto x = static_cast<uint32_t>(right) + call(5, line, round / 4)[static_cast<size_t>(round % 4)];
        x *= 0x9E3779B1u;
        x ^= x >> 15;
        x *= 0x85EBCA77u;
        x ^= x >> 13;
        x *= 0xC2B2AE3Du;
        x ^= x >> 16;
        const int64_t next = (left ^ x) % side;
        left = right;
        right = next;
      }
      position = left * side + right;
    } while (position >= n);
    return (position + scaled(word(call(5, line, 3), 0), n)) % n;
  }
  double weight(int64_t i) const {
    return spec.draw == rad::Draw::kStratified ? static_cast<double>(stratum_size(i))
                                               : static_cast<double>(n) / static_cast<double>(k());
  }
  // A line of `rows`, `tile_rows` or `same` as it is stored.
  std::vector<int64_t> list(int64_t line = 0) const {
    std::vector<int64_t> all;
    for (int64_t i = 0; i < k(); ++i) all.push_back(index(line, i));
    if (spec.sampling == rad::Sampling::kSame)
      for (size_t i = 0; i < all.size(); ++i)
        for (size_t j = i + 1; j < all.size(); ++j)
          if (all[j] < all[i]) std::swap(all[i], all[j]);
    return all;
  }
};

constexpr uint64_t kKey = 0x1234567890ABCDEFull, kSalt = 0xFEDCBA98ull;

// ---- saved buffers, messages
// --------------------------------------------------------------------------------

// A saved buffer as ops hand it to pack: filled with rubbish but for the key.
inline std::vector<char> fresh_saved(const rad::SketchSpec& spec, rad::DType dtype, int64_t rows,
                                     int64_t features) {
  const auto layout = rad::saved_layout(spec, dtype, rows, features);
  std::vector<char> saved(static_cast<size_t>(layout.bytes), static_cast<char>(0xAB));
  std::memcpy(saved.data() + layout.trailer, &kKey, sizeof kKey);
  return saved;
}

inline std::string describe(const rad::SketchSpec& spec, rad::DType dtype, int64_t rows, int64_t cols) {
  static const char* const samplings[] = {"rows", "same", "different", "tile_rows", "project"};
  static const char* const draws[] = {"stratified", "with_replacement", "without_replacement", "norm",
                                      "hadamard"};
  static const char* const dtypes[] = {"f32", "f64", "bf16", "f16"};
  return std::string(samplings[static_cast<int>(spec.sampling)]) + " " + draws[static_cast<int>(spec.draw)] +
         " " + std::to_string(spec.num) + "/" + std::to_string(spec.den) + " bits " +
         std::to_string(spec.bits) + " " + dtypes[static_cast<int>(dtype)] + " " + std::to_string(rows) +
         "x" + std::to_string(cols);
}

// ---- running a contraction on both sides ------------------------------------------------------------------

// Status 0 from `run(args)`, with workspace of `bytes(args)` bytes.
template <class Args>
void run_cpu(int64_t (*bytes)(const Args&), int (*run)(const Args&), Args args) {
  std::vector<int64_t> workspace(static_cast<size_t>(bytes(args) + 7) / 8);
  args.workspace = workspace.data();
  EXPECT(run(args) == 0);
}
template <class Args>
void run_cuda(int64_t (*bytes)(const Args&), int (*run)(const Args&), Args args) {
  Device<char> workspace(static_cast<size_t>(bytes(args)));
  args.workspace = workspace.data();
  EXPECT(run(args) == 0);
}

// What `project` packs of an activation [rows, cols]: some matrix of the kept width; else the activation.
inline int64_t packed_cols(const rad::SketchSpec& spec, int64_t cols) {
  return spec.sampling == rad::Sampling::kProject ? rad::kept(cols, spec.num, spec.den) : cols;
}

// A packed activation on both sides; the CPU's is the starting point of every test that consumes it.
struct Packed {
  std::vector<char> host;
  Device<char> device;

  // x is [rows, packed_cols(features)].
  Packed(const rad::SketchSpec& spec, rad::DType dtype, const rad::MatrixView& x, int64_t features)
      : host(fresh_saved(spec, dtype, x.rows, features)), device(host.size()) {
    if (spec.draw == rad::Draw::kNorm)
      run_cpu<rad::NormSampleArgs>(rad::cpu::norm_sample_workspace, rad::cpu::norm_sample,
                                   {{}, spec, dtype, x, kSalt, host.data(), nullptr});
    run_cpu<rad::PackArgs>(rad::cpu::pack_workspace, rad::cpu::pack,
                           {{}, spec, dtype, x, features, kSalt, host.data(), nullptr});
    upload(device.data(), host.data(), host.size());
  }
  Packed(const rad::SketchSpec& spec, rad::DType dtype, const Matrix& x)
      : Packed(spec, dtype, x.host(), x.host().cols) {}
};

}  // namespace testing
