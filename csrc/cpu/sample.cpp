#include <algorithm>

#include "core/sampler.h"
#include "cpu/parallel.h"

namespace rad::cpu {

int64_t sample_workspace(const SampleArgs&) { return 0; }

int sample(const SampleArgs& args) {
  const Sampler sampler(args.trailer->key, args.trailer->salt, args.spec, args.n);
  const int64_t k = sampler.k();
  if (args.spec.draw == Draw::kWithoutReplacement) {
    const Permutation permutation(sampler.key, sampler.salt, args.outer, args.n);
    parallel_for(args.exec, k, 1 << 10, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) args.index[i] = permutation(i);
    });
  } else {
    parallel_for(args.exec, k, 1 << 12, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) args.index[i] = sampler.index(args.outer, i);
    });
  }
  if (args.spec.sampling == Sampling::kSame && args.spec.draw != Draw::kStratified) {
    std::sort(args.index, args.index + k);
  }
  return 0;
}

}  // namespace rad::cpu
