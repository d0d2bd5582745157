#include "core/signs.h"

#include "core/dtype.h"
#include "core/sampler.h"
#include "cpu/parallel.h"

namespace rad::cpu {

int signs(const SignsArgs& args) {
  const int64_t k = kept(args.features, args.spec.num, args.spec.den);
  return visit_dtype(args.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T plus = narrow<T>(1), minus = narrow<T>(-1);
    parallel_for(args.exec, args.end - args.begin, grain_for(k * sizeof(T)), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        T* out = static_cast<T*>(args.out) + i * k;
        Words call{};
        for (int64_t j = 0; j < k; ++j) {
          if (j % 128 == 0) call = sign_call(args.trailer->key, args.trailer->salt, args.begin + i, j);
          out[j] = sign_bit(call, j) ? plus : minus;
        }
      }
    });
    return 0;
  });
}

}  // namespace rad::cpu
