#include <algorithm>

#include "core/sampler.h"
#include "cpu/parallel.h"

namespace rad::cpu {

namespace {

void sample_line(const SampleArgs& args, const Sampler& sampler, int64_t line, int64_t* index) {
  const int64_t k = sampler.k();
  if (args.spec.draw == Draw::kWithoutReplacement) {
    const Permutation permutation(sampler.key, sampler.salt, line, args.n);
    parallel_for(args.exec, k, 1 << 10, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) index[i] = permutation(i);
    });
  } else {
    parallel_for(args.exec, k, 1 << 12, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) index[i] = sampler.index(line, i);
    });
  }
  if (args.spec.sampling == Sampling::kSame && args.spec.draw != Draw::kStratified) {
    std::sort(index, index + k);
  }
}

}  // namespace

int64_t sample_workspace(const SampleArgs&) { return 0; }

int sample(const SampleArgs& args) {
  const Sampler sampler(args.trailer->key, args.trailer->salt, args.spec, args.n);
  for (int64_t line = 0; line < args.lines; ++line)
    sample_line(args, sampler, args.outer + line, args.index + line * sampler.k());
  return 0;
}

}  // namespace rad::cpu
