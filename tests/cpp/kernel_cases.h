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
constexpr rad::Sampling kSamplings[] = {rad::Sampling::kRows, rad::Sampling::kSame,
                                        rad::Sampling::kDifferent};
constexpr rad::Draw kDraws[] = {rad::Draw::kStratified, rad::Draw::kWithReplacement};

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
  // Number i of line `row` (0 for rows and same).
  int64_t index(int64_t row, int64_t i) const {
    const uint32_t role = spec.sampling == rad::Sampling::kRows ? 1 : 2;
    const auto words = reference_philox(
        {static_cast<uint32_t>(i / 2), static_cast<uint32_t>(row), role << 24, static_cast<uint32_t>(salt)},
        key);
    const uint64_t word = static_cast<uint64_t>(words[static_cast<size_t>(i % 2 * 2 + 1)]) << 32 |
                          words[static_cast<size_t>(i % 2 * 2)];
    const bool stratified = spec.draw == rad::Draw::kStratified;
    const int64_t range = stratified ? stratum_size(i) : n;
    const auto offset =
        static_cast<int64_t>((static_cast<unsigned __int128>(word) * static_cast<uint64_t>(range)) >> 64);
    return stratified ? stratum_begin(i) + offset : offset;
  }
  double weight(int64_t i) const {
    return spec.draw == rad::Draw::kStratified ? static_cast<double>(stratum_size(i))
                                               : static_cast<double>(n) / static_cast<double>(k());
  }
  // The list of `rows` or `same` as it is stored.
  std::vector<int64_t> list() const {
    std::vector<int64_t> all;
    for (int64_t i = 0; i < k(); ++i) all.push_back(index(0, i));
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
  static const char* const samplings[] = {"rows", "same", "different"};
  static const char* const draws[] = {"stratified", "with_replacement"};
  static const char* const dtypes[] = {"f32", "f64", "bf16", "f16"};
  return std::string(samplings[static_cast<int>(spec.sampling)]) + " " + draws[static_cast<int>(spec.draw)] +
         " " + std::to_string(spec.num) + "/" + std::to_string(spec.den) + " " +
         dtypes[static_cast<int>(dtype)] + " " + std::to_string(rows) + "x" + std::to_string(cols);
}

// A packed activation on both sides; the CPU's is the starting point of every test that consumes it.
struct Packed {
  std::vector<char> host;
  Device<char> device;

  Packed(const rad::SketchSpec& spec, rad::DType dtype, const Matrix& x)
      : host(fresh_saved(spec, dtype, x.host().rows, x.host().cols)), device(host.size()) {
    rad::PackArgs args{{}, spec, dtype, x.host(), kSalt, host.data(), nullptr};
    std::vector<char> workspace(static_cast<size_t>(rad::cpu::pack_workspace(args)));
    args.workspace = workspace.data();
    EXPECT(rad::cpu::pack(args) == 0);
    upload(device.data(), host.data(), host.size());
  }
};

}  // namespace testing
