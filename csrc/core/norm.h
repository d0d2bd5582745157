// Where codes of normalised values lie and how sums are ordered, for both sides.
#pragma once
#include "core/layout.h"

namespace rad {

constexpr int kNormLanes =
    256;  // element i of a set is summed in lane i % 256, then lanes are added in halves

RAD_HD SketchSpec norm_spec(int32_t bits) { return {1, 1, Sampling::kRows, Draw::kStratified, bits}; }
// The groups' least values are kept in bf16: rounded down, they cost a normalised value next to nothing.
constexpr DType kNormLo = DType::kBF16;
// Sets of consecutive elements are a line each; otherwise all elements are one line.
RAD_HD int64_t norm_lines(const NormShape& s) { return s.by_channel ? 1 : s.n / s.set; }
RAD_HD int64_t norm_width(const NormShape& s) { return s.by_channel ? s.n : s.set; }
RAD_HD int64_t norm_param(const NormShape& s, int64_t element) { return element / s.inner % s.params; }
RAD_HD SavedLayout norm_layout(const NormShape& s, int32_t bits) {
  return saved_layout(norm_spec(bits), kNormLo, norm_lines(s), norm_width(s));
}

}  // namespace rad
