#include <algorithm>

#include "core/layout.h"
#include "cpu/parallel.h"

namespace rad::cpu {

int64_t sample_workspace(const SampleArgs&) { return 0; }

int sample(const SampleArgs& args) {
  const Sampler sampler(args.trailer->key, args.trailer->salt, args.spec, args.n);
  parallel_for(args.exec, sampler.k(), 1 << 12, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) args.index[i] = sampler.index(0, i);
  });
  if (args.spec.sampling == Sampling::kSame && args.spec.draw == Draw::kWithReplacement) {
    std::sort(args.index, args.index + sampler.k());
  }
  return 0;
}

}  // namespace rad::cpu
