#include "ops/rnn_plan.h"

#include <algorithm>

namespace rad::ops {
namespace {

// Elements of the gates of one chunk: transients stay at a megabyte of fp32, whatever the number of steps.
constexpr int64_t kChunkElements = 1 << 18;

// Samplings that draw features once a pack: a pack is then one step, so that every step has its own draw.
bool shares_features(const std::optional<SketchSpec>& spec) {
  return spec && spec->num < spec->den &&
         (spec->sampling == Sampling::kSame || spec->sampling == Sampling::kProject);
}

int64_t steps_of_chunk(const RnnSpec& s) {
  if (shares_features(s.x) || shares_features(s.h)) return 1;
  const int64_t each = s.batch * s.hidden * rnn_gates(s.cell);
  return std::max<int64_t>(1, std::min(s.steps, kChunkElements / std::max<int64_t>(each, 1)));
}

Tensor bytes_of(const Tensor& saved, int64_t begin, int64_t end) {
  return slice_of(saved, 0, begin, end - begin);
}

}  // namespace

RnnSpec decode_rnn(std::vector<int64_t> sizes, std::vector<int64_t> batch_sizes, int64_t cell, DType dtype,
                   const std::vector<int64_t>& spec_x, const std::vector<int64_t>& spec_h, int64_t bits) {
  RAD_CHECK(sizes.size() == 5, "sizes must be [steps, batch, inputs, hidden, directions], got ", sizes.size(),
            " numbers");
  for (const int64_t size : sizes) RAD_CHECK(size > 0, "sizes must be positive, got ", size);
  RAD_CHECK(0 <= cell && cell <= 3, "unknown cell ", cell);
  RAD_CHECK(bits == 0 || bits == 1 || bits == 2 || bits == 4 || bits == 8,
            "bits must be 0, 1, 2, 4 or 8, got ", bits);
  int64_t before = sizes[1];
  RAD_CHECK(batch_sizes.empty() ||
                (static_cast<int64_t>(batch_sizes.size()) == sizes[0] && batch_sizes[0] == before),
            "batch_sizes must be one a step and begin with the batch");
  for (const int64_t n : batch_sizes) {
    RAD_CHECK(0 < n && n <= before, "batch_sizes must descend and be positive");
    before = n;
  }
  const auto optional = [](const std::vector<int64_t>& spec) {
    return spec.empty() ? std::nullopt : std::optional<SketchSpec>(decode_spec(spec));
  };
  return {static_cast<RnnCell>(cell),
          dtype,
          sizes[0],
          sizes[1],
          sizes[2],
          sizes[3],
          sizes[4],
          static_cast<int32_t>(bits),
          optional(spec_x),
          optional(spec_h),
          std::move(batch_sizes)};
}

RnnPlan::RnnPlan(RnnSpec spec) : spec_(std::move(spec)) {
  const RnnSpec& s = spec_;
  const int64_t factor_bits = rnn_factor_bits(s.cell, s.bits, s.dtype);
  first_row_ = first_byte_ = first_group_ = {0};
  for (int64_t t = 0; t < s.steps; ++t) {
    const int64_t n = s.batch_sizes.empty() ? s.batch : s.batch_sizes[t];
    first_row_.push_back(first_row_.back() + n);
    first_byte_.push_back(first_byte_.back() + rnn_step_bytes(n * s.hidden, factor_bits));
    first_group_.push_back(first_group_.back() + (n * s.hidden + kGroup - 1) / kGroup);
  }
  const int64_t length = steps_of_chunk(s);
  for (int64_t t = 0; t < s.steps; t += length) {
    const int64_t end = std::min(t + length, s.steps);
    chunks_.push_back(
        {static_cast<int64_t>(chunks_.size()), t, end, first_row_[t], first_row_[end] - first_row_[t]});
  }
  int64_t at = planes(s.directions).codes;
  const auto place = [&](const SketchSpec& sketch, int64_t features, std::vector<int64_t>& offsets) {
    for (const RnnChunk& chunk : chunks_) {
      offsets.push_back(at);
      at += saved_layout(sketch, s.dtype, chunk.rows, features).bytes;
    }
  };
  if (s.x) place(*s.x, s.inputs, x_at_);
  for (int64_t d = 0; s.h && d < s.directions; ++d) place(*s.h, s.hidden, h_at_);
  trailer_ = at;
}

RnnPlan::Planes RnnPlan::planes(int64_t direction) const {
  const RnnStreams streams = rnn_streams(spec_.cell);
  const int64_t ranged = spec_.bits ? streams.ranged : 0, real = spec_.dtype == DType::kF64 ? 8 : 4;
  Planes p;
  p.codes_pitch = align_plane(first_byte_.back());
  p.lo_pitch = align_plane(first_group_.back() * real);
  p.step_pitch = align_plane(first_group_.back() * 2);
  const int64_t all = streams.count * p.codes_pitch + ranged * (p.lo_pitch + p.step_pitch);
  p.codes = direction * all;
  p.lo = p.codes + streams.count * p.codes_pitch;
  p.step = p.lo + ranged * p.lo_pitch;
  return p;
}

int64_t RnnPlan::most_rows() const {
  int64_t most = 0;
  for (const RnnChunk& chunk : chunks_) most = std::max(most, chunk.rows);
  return most;
}

int64_t RnnPlan::keys() const { return 1 + static_cast<int64_t>(x_at_.size() + h_at_.size()); }

void RnnPlan::check(const Tensor& saved) const {
  RAD_CHECK(saved.scalar_type() == ScalarType::Byte && saved.is_contiguous() && saved.numel() == bytes(),
            "saved must be a contiguous uint8 tensor of ", bytes(), " bytes, got ", saved.numel(),
            " elements");
}

Saved RnnPlan::pack_at(const Tensor& saved, const SketchSpec& spec, int64_t at, int64_t rows,
                       int64_t features) const {
  const int64_t size = saved_layout(spec, spec_.dtype, rows, features).bytes;
  return Saved(bytes_of(saved, at, at + size), spec, spec_.dtype, rows, features);
}

Saved RnnPlan::x_pack(const Tensor& saved, const RnnChunk& chunk) const {
  return pack_at(saved, *spec_.x, x_at_[chunk.number], chunk.rows, spec_.inputs);
}

Saved RnnPlan::h_pack(const Tensor& saved, int64_t direction, const RnnChunk& chunk) const {
  const int64_t number = direction * static_cast<int64_t>(chunks_.size()) + chunk.number;
  return pack_at(saved, *spec_.h, h_at_[number], chunk.rows, spec_.hidden);
}

RnnFactors RnnPlan::factors(const Tensor& saved, int64_t direction, int64_t step) const {
  char* base = static_cast<char*>(saved.mutable_data_ptr());
  const Planes p = planes(direction);
  const int64_t real = spec_.dtype == DType::kF64 ? 8 : 4;
  return {spec_.bits,
          reinterpret_cast<const Trailer*>(base + trailer_),
          direction * spec_.steps + step,
          base + p.codes + first_byte_[step],
          p.codes_pitch,
          base + p.lo + first_group_[step] * real,
          p.lo_pitch,
          base + p.step + first_group_[step] * 2,
          p.step_pitch};
}

Tensor RnnPlan::create(const Tensor& like, int64_t salt, const std::optional<Tensor>& given) const {
  check_salt(salt);
  const Tensor saved = scratch(like, bytes());
  // One draw of torch's generator for all keys; an op that makes nothing takes as many.
  Tensor drawn =
      given ? torch::stable::reshape(*given, {-1}) : empty_like_device(like, {keys()}, ScalarType::Long);
  RAD_CHECK(drawn.numel() == keys(), "key must hold ", keys(), " int64, got ", drawn.numel());
  if (!given) random_(drawn);
  int64_t next = 0;
  const auto take = [&](uint64_t* target) { place_key(like, target, slice_of(drawn, 0, next++, 1)); };

  char* base = static_cast<char*>(saved.mutable_data_ptr());
  const auto gap = [&](int64_t first, int64_t pitch, int64_t content, int64_t count) {
    for (int64_t s = 0; s < count; ++s) {
      if (content == pitch) break;
      Tensor rest = bytes_of(saved, first + s * pitch + content, first + (s + 1) * pitch);
      torch::stable::zero_(rest);
    }
  };
  const RnnStreams streams = rnn_streams(spec_.cell);
  const int64_t ranged = spec_.bits ? streams.ranged : 0, real = spec_.dtype == DType::kF64 ? 8 : 4;
  for (int64_t d = 0; d < spec_.directions; ++d) {
    const Planes p = planes(d);
    gap(p.codes, p.codes_pitch, first_byte_.back(), streams.count);
    gap(p.lo, p.lo_pitch, first_group_.back() * real, ranged);
    gap(p.step, p.step_pitch, first_group_.back() * 2, ranged);
  }
  auto* trailer = reinterpret_cast<Trailer*>(base + trailer_);
  Tensor words = view_of(like, trailer, {sizeof(Trailer) / 8}, {1}, ScalarType::Long);
  torch::stable::zero_(words);
  take(&trailer->key);
  torch::stable::fill_(slice_of(words, 0, 1, 1), static_cast<double>(salt));
  torch::stable::fill_(slice_of(words, 0, 2, 1), static_cast<double>(kFormatVersion));
  for (const RnnChunk& chunk : chunks_)
    if (spec_.x) take(&x_pack(saved, chunk).trailer()->key);
  for (int64_t d = 0; d < spec_.directions; ++d)
    for (const RnnChunk& chunk : chunks_)
      if (spec_.h) take(&h_pack(saved, d, chunk).trailer()->key);
  return saved;
}

}  // namespace rad::ops
