#pragma once
#include <algorithm>

#include "kernels.h"

namespace rad::cpu {

// body(begin, end) over [0, n), in pieces of at least `grain`, on the caller's threads.
template <class Body>
void parallel_for(const Exec& exec, int64_t n, int64_t grain, const Body& body) {
  if (n <= 0) return;
  if (!exec.parallel || n <= grain) return body(int64_t{0}, n);
  exec.parallel(
      n, std::max<int64_t>(grain, 1),
      [](const void* closure, int64_t begin, int64_t end) {
        (*static_cast<const Body*>(closure))(begin, end);
      },
      &body);
}

// How many items of `bytes` each make a piece that is worth a thread.
inline int64_t grain_for(int64_t bytes) {
  return std::max<int64_t>(1, (int64_t{1} << 15) / std::max<int64_t>(bytes, 1));
}

}  // namespace rad::cpu
