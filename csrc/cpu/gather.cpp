#include "core/dtype.h"
#include "core/matrix_view.h"
#include "cpu/parallel.h"

namespace rad::cpu {
namespace {

template <class T, class Out, class Convert>
void gather_rows(const GatherArgs& args, const Convert& convert) {
  const MatrixView& m = args.source;
  parallel_for(args.exec, args.count, grain_for(m.cols * sizeof(T)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* row = static_cast<const T*>(m.data) + row_offset(m, args.index[i]);
      Out* out = static_cast<Out*>(args.out) + i * m.cols;
      const double scale = args.weight ? args.weight[i] : args.scale[i >= args.split];
      if (m.col_stride == 1) {
        for (int64_t c = 0; c < m.cols; ++c) out[c] = convert(row[c], scale);
      } else {
        for (int64_t c = 0; c < m.cols; ++c) out[c] = convert(row[c * m.col_stride], scale);
      }
    }
  });
}

}  // namespace

int gather(const GatherArgs& args) {
  const bool scaled = args.weight || args.scale[0] != 1 || args.scale[1] != 1;
  if (!scaled && !args.widen) {
    return visit_item(args.dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      gather_rows<T, T>(args, [](T v, double) { return v; });
      return 0;
    });
  }
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Sum = Accumulate<T>;
    const auto product = [](T v, double scale) { return widen(v) * static_cast<Sum>(scale); };
    if (args.widen) {
      gather_rows<T, Sum>(args, product);
    } else {
      gather_rows<T, T>(args, [&](T v, double scale) { return narrow<T>(product(v, scale)); });
    }
    return 0;
  });
}

}  // namespace rad::cpu
