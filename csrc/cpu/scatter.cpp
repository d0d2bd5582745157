#include <cstring>

#include "core/dtype.h"
#include "cpu/parallel.h"

namespace rad::cpu {

int scatter(const ScatterArgs& args) {
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Sum = Accumulate<T>;
    const int64_t count = args.count;
    const Sum scale[2] = {static_cast<Sum>(args.scale[0]), static_cast<Sum>(args.scale[1])};
    parallel_for(args.exec, args.rows, grain_for(args.cols * sizeof(T)), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* packed = static_cast<const T*>(args.packed) + r * count;
        T* out = static_cast<T*>(args.out) + r * args.cols;
        std::memset(static_cast<void*>(out), 0, args.cols * sizeof(T));
        for (int64_t j = 0; j < count;) {
          const int64_t column = args.index[j];
          Sum sum = widen(packed[j]) * scale[j >= args.split];
          for (++j; j < count && args.index[j] == column; ++j)
            sum += widen(packed[j]) * scale[j >= args.split];
          out[column] = narrow<T>(sum);
        }
      }
    });
    return 0;
  });
}

}  // namespace rad::cpu
