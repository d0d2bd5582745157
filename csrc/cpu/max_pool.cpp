#include <algorithm>
#include <limits>
#include <vector>

#include "core/dtype.h"
#include "core/pool.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

constexpr int kGroup = 32;  // codes of one word

// The greatest of a window and its place.
template <class T>
struct Greatest {
  Accumulate<T> value = -std::numeric_limits<Accumulate<T>>::infinity();
  int64_t at = -1, code = 0;  // at: of x; -1 while only -infinity was seen

  void see(const T* x, int64_t offset, int64_t place) {
    const auto v = widen(x[offset]);
    const bool better = (v > value) | (v != v);
    value = better ? v : value;
    at = better ? offset : at;
    code = better ? place : code;
  }
};

// Elements of y in ascending order, their windows found step by step.
class Walk {
 public:
  Walk(const PoolShape& s, int64_t i) : s_(s), place_(s, i), window_{{s, 0, 0}, {s, 1, 0}, {s, 2, 0}} {
    for (int d = 0; d < 3; ++d) window_[d] = Window(s_, d, place_.o[d]);
  }

  template <class T>
  Greatest<T> greatest(const T* x) const {
    Greatest<T> best;
    const int64_t pitch = s_.dilation[2] * s_.lanes;
    best.code = (window_[0].first * s_.window[1] + window_[1].first) * s_.window[2] + window_[2].first;
    for (int64_t a = window_[0].first; a < window_[0].last; ++a) {
      for (int64_t b = window_[1].first; b < window_[1].last; ++b) {
        const int64_t row =
            row_at(window_[0].start + a * s_.dilation[0], window_[1].start + b * s_.dilation[1]);
        const int64_t origin = (row + window_[2].start) * s_.lanes + place_.lane;
        const int64_t code = (a * s_.window[1] + b) * s_.window[2];
        for (int64_t c = window_[2].first; c < window_[2].last; ++c)
          best.see(x, origin + c * pitch, code + c);
      }
    }
    return best;
  }

  void advance() {
    if (++place_.lane < s_.lanes) return;
    place_.lane = 0;
    for (int d = 2; d >= 0; --d) {
      if (++place_.o[d] < s_.out[d]) {
        window_[d] = Window(s_, d, place_.o[d]);
        return;
      }
      place_.o[d] = 0;
      window_[d] = Window(s_, d, 0);
    }
    ++place_.plane;
  }

 private:
  int64_t row_at(int64_t i, int64_t j) const {
    return ((place_.plane * s_.in[0] + i) * s_.in[1] + j) * s_.in[2];
  }

  const PoolShape& s_;
  PoolPlace place_;
  Window window_[3];
};

template <class T>
void pool_groups(const MaxPoolArgs& args, int64_t first, int64_t last) {
  const int bits = pool_bits(args.shape);
  const int64_t n = pool_outputs(args.shape);
  const auto* x = static_cast<const T*>(args.x);
  auto* y = static_cast<T*>(args.y);
  Walk walk(args.shape, first * kGroup);
  for (int64_t g = first; g < last; ++g) {
    uint32_t code[kGroup] = {};
    for (int64_t i = g * kGroup; i < std::min(n, (g + 1) * kGroup); ++i, walk.advance()) {
      const auto best = walk.greatest(x);
      y[i] = best.at < 0 ? narrow<T>(best.value) : x[best.at];
      code[i - g * kGroup] = static_cast<uint32_t>(best.code);
    }
    for (int b = 0; b < bits; ++b) {
      uint32_t word = 0;
      for (int i = 0; i < kGroup; ++i) word |= (code[i] >> b & 1u) << i;
      args.codes[g * bits + b] = word;
    }
  }
}

// How far each place of a window lies from its beginning, in positions.
std::vector<int64_t> place_offsets(const PoolShape& s) {
  std::vector<int64_t> offsets;
  for (int64_t a = 0; a < s.window[0]; ++a)
    for (int64_t b = 0; b < s.window[1]; ++b)
      for (int64_t c = 0; c < s.window[2]; ++c)
        offsets.push_back((a * s.dilation[0] * s.in[1] + b * s.dilation[1]) * s.in[2] + c * s.dilation[2]);
  return offsets;
}

template <class T>
void scatter_planes(const MaxPoolBackwardArgs& args, const std::vector<int64_t>& offsets, int64_t first,
                    int64_t last) {
  const PoolShape& s = args.shape;
  const int bits = pool_bits(s);
  const auto* dy = static_cast<const T*>(args.dy);
  auto* dx = static_cast<T*>(args.dx);
  const int64_t inputs = pool_inputs(s) / s.planes, outputs = pool_outputs(s) / s.planes;
  std::fill(dx + first * inputs, dx + last * inputs, T{});
  int64_t i = first * outputs, known = -1;
  uint32_t code[kGroup];
  for (int64_t plane = first; plane < last; ++plane) {
    for (int64_t a = 0; a < s.out[0]; ++a)
      for (int64_t b = 0; b < s.out[1]; ++b)
        for (int64_t c = 0; c < s.out[2]; ++c) {
          const int64_t start =
              ((a * s.stride[0] - s.pad[0]) * s.in[1] + b * s.stride[1] - s.pad[1]) * s.in[2] +
              c * s.stride[2] - s.pad[2];
          T* to = dx + plane * inputs + start * s.lanes;
          for (int64_t lane = 0; lane < s.lanes; ++lane, ++i) {
            if (i / kGroup != known) {
              known = i / kGroup;
              for (int j = 0; j < kGroup; ++j) code[j] = 0;
              for (int bit = 0; bit < bits; ++bit)
                for (int j = 0; j < kGroup; ++j) code[j] |= (args.codes[known * bits + bit] >> j & 1u) << bit;
            }
            T& sum = to[offsets[code[i % kGroup]] * s.lanes + lane];
            sum = narrow<T>(widen(sum) + widen(dy[i]));
          }
        }
  }
}

}  // namespace

int max_pool(const MaxPoolArgs& args) {
  const int64_t groups = (pool_outputs(args.shape) + kGroup - 1) / kGroup;
  return visit_dtype(args.dtype, [&](auto tag) {
    parallel_for(args.exec, groups, 1 << 6, [&](int64_t begin, int64_t end) {
      pool_groups<typename decltype(tag)::type>(args, begin, end);
    });
    return 0;
  });
}

int max_pool_backward(const MaxPoolBackwardArgs& args) {
  const auto offsets = place_offsets(args.shape);
  const int64_t each = pool_inputs(args.shape) / std::max<int64_t>(args.shape.planes, 1);
  return visit_dtype(args.dtype, [&](auto tag) {
    parallel_for(args.exec, args.shape.planes, grain_for(each * 4), [&](int64_t begin, int64_t end) {
      scatter_planes<typename decltype(tag)::type>(args, offsets, begin, end);
    });
    return 0;
  });
}

}  // namespace rad::cpu
