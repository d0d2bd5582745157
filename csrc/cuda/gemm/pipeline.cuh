// A ring of stages in shared memory between threads that fill them and warps that multiply (sm_90). Both
// sides count on from tile to tile, so that the stages of the next are filled while results are stored.
#pragma once
#include "cuda/ptx.cuh"

namespace rad::cuda::gemm {

template <int Stages>
struct Ring {
  uint64_t full[Stages], empty[Stages];  // mbarriers

  // By one thread; a __syncthreads follows.
  RAD_DEVICE void init(int fillers, int readers) {
    for (int stage = 0; stage < Stages; ++stage) {
      mbarrier_init(&full[stage], fillers);
      mbarrier_init(&empty[stage], readers);
    }
    mbarrier_init_fence();
  }
};

// A thread's own place in the ring. Stages that were never filled count as emptied in the round before the
// first, whose parity is 1.
template <int Stages>
struct Turn {
  Ring<Stages>& ring;
  int stage = 0, parity = 0;

  RAD_DEVICE void wait_until_empty() const { mbarrier_wait(&ring.empty[stage], parity ^ 1); }
  RAD_DEVICE void wait_until_full() const { mbarrier_wait(&ring.full[stage], parity); }
  RAD_DEVICE void next() {
    if (++stage < Stages) return;
    stage = 0;
    parity ^= 1;
  }
};

}  // namespace rad::cuda::gemm
