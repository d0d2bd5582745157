// With ptx_wgmma.cuh the only file of inline asm (but for arithmetic) and the only one that knows the host
// harness (docs/simt.md): launches, shared memory, asynchronous copies, matrix instructions. Every wrapper
// has a device and a host branch, and a test of its own (tests/cpp/test_ptx_*.cu). Host branches exist only
// under SIMT_HOST.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda.h>
#include <cuda_runtime.h>
#define RAD_SITE_FIRST
#define RAD_SITE
#define RAD_HERE
#else
#define RAD_SITE_FIRST const char *file_ = __builtin_FILE(), int line_ = __builtin_LINE()
#define RAD_SITE , RAD_SITE_FIRST
#define RAD_HERE \
  ::simt::Site { file_, line_ }
#endif

#define RAD_DEVICE __device__ __forceinline__

namespace rad::cuda {

using bf16 = __nv_bfloat16;
using f16 = __half;

template <class T>
constexpr bool kIsHalf = std::is_same_v<T, bf16> || std::is_same_v<T, f16>;
#ifdef SIMT_HOST
template <class T>
constexpr simt::Half kHostHalf = std::is_same_v<T, bf16> ? simt::Half::kBF16 : simt::Half::kF16;
#endif

// Lets an array type stand before a name.
template <class T>
struct identity {
  using type = T;
};

// ---- launch
// -------------------------------------------------------------------------------------------------

constexpr size_t kDefaultSharedLimit = 48 << 10;  // beyond it a kernel must ask

// Enqueues a kernel, waits for nothing, returns the cudaError_t. An empty grid is the caller's to avoid.
#ifdef __CUDACC__
struct LaunchConfig {
  dim3 grid, block;
  size_t smem = 0;
  void* stream = nullptr;
};
template <class... P, class... A>
int launch(void (*kernel)(P...), const LaunchConfig& c, A&&... args) {
  if (c.smem > kDefaultSharedLimit) {
    const cudaError_t status =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(c.smem));
    if (status != cudaSuccess) return status;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = c.grid;
  config.blockDim = c.block;
  config.dynamicSmemBytes = c.smem;
  config.stream = static_cast<cudaStream_t>(c.stream);
  return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}
using TensorMap = CUtensorMap;
#else
using simt::LaunchConfig;
using simt::TensorMap;
template <class... P, class... A>
int launch(void (*kernel)(P...), const LaunchConfig& c, A&&... args) {
  simt::run_kernel(kernel, c, static_cast<A&&>(args)...);
  return 0;
}
#endif

// Of the current device. The harness has few, so that blocks which loop over tiles get several.
inline int multiprocessors() {
#ifdef __CUDACC__
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
#else
  return 1;
#endif
}

// ---- shared memory
// --------------------------------------------------------------------------------------------

// CUDA_SHARED(float[32], sums); declares a static shared array, dyn_smem<T>() is the dynamic one
// (1024-aligned).
#ifdef __CUDACC__
#define CUDA_SHARED(T, name) __shared__ typename ::rad::cuda::identity<T>::type name
template <class T>
RAD_DEVICE T* dyn_smem() {
  extern __shared__ __align__(1024) unsigned char dynamic_shared_[];
  return reinterpret_cast<T*>(dynamic_shared_);
}
RAD_DEVICE uint32_t smem_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
#else
// Each expansion has a tag of its own, so each place in the source is one array per block.
#define CUDA_SHARED(T, name)                                                                     \
  auto& name = *[]() -> typename ::rad::cuda::identity<T>::type* {                               \
    using Shared = typename ::rad::cuda::identity<T>::type;                                      \
    static char tag;                                                                             \
    return static_cast<Shared*>(                                                                 \
        simt::static_shared(&tag, sizeof(Shared), alignof(Shared) < 16 ? 16 : alignof(Shared))); \
  }()
template <class T>
T* dyn_smem() {
  return static_cast<T*>(simt::dynamic_shared());
}
inline uint32_t smem_address(const void* p) { return simt::shared_address(p); }
#endif

// ---- cp.async (sm_80)
// -------------------------------------------------------------------------------------------

// 16 bytes from global to shared memory: the first `bytes` of src (the rest is not read), then zeros.
RAD_DEVICE void cp_async16(void* dst, const void* src, int bytes = 16 RAD_SITE) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_address(dst)), "l"(src), "r"(bytes)
               : "memory");
#elif defined(SIMT_HOST)
  simt::cp_async(dst, src, 16, bytes, RAD_HERE);
#endif
}
RAD_DEVICE void cp_async_commit() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.commit_group;" ::: "memory");
#elif defined(SIMT_HOST)
  simt::cp_async_commit();
#endif
}
// Returns when at most GroupsLeft of this thread's groups are in flight.
template <int GroupsLeft>
RAD_DEVICE void cp_async_wait() {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.wait_group %0;" ::"n"(GroupsLeft) : "memory");
#elif defined(SIMT_HOST)
  simt::cp_async_wait(GroupsLeft);
#endif
}
// Arrives on the mbarrier (counting as one expected arrival) when this thread's copies so far have landed.
RAD_DEVICE void cp_async_mbarrier_arrive(uint64_t* barrier RAD_SITE) {
#ifdef __CUDA_ARCH__
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(smem_address(barrier))
               : "memory");
#elif defined(SIMT_HOST)
  simt::cp_async_mbarrier_arrive(barrier, RAD_HERE);
#endif
}

// ---- ldmatrix, mma (sm_80)
// ----------------------------------------------------------------------------------------

// Count 8x8 matrices of 16-bit items; lane 8 m + i passes the address of row i of matrix m.
template <int Count, bool Transposed>
RAD_DEVICE void ldmatrix(uint32_t (&r)[Count], const void* row RAD_SITE) {
  static_assert(Count == 2 || Count == 4);
#ifdef __CUDA_ARCH__
  const uint32_t address = smem_address(row);
  if constexpr (Count == 4 && !Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  if constexpr (Count == 4 && Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  if constexpr (Count == 2 && !Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  if constexpr (Count == 2 && Transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
#elif defined(SIMT_HOST)
  simt::ldmatrix(r, Count, Transposed, row, RAD_HERE);
#endif
}

// Four 8x8 matrices of 16-bit items, each transposed on its way: lane 8 m + i passes the address of what is
// row i of matrix m in shared memory. Registers as ldmatrix fills them. sm_90.
RAD_DEVICE void stmatrix_transposed(void* row, const uint32_t (&r)[4] RAD_SITE) {
#ifdef __CUDA_ARCH__
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(smem_address(row)),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
#elif defined(SIMT_HOST)
  simt::stmatrix_transposed(row, r, RAD_HERE);
#endif
}

// d = a [16, 16] b [16, 8] + c in fp32, T is bf16 or f16, fragments as in the PTX ISA.
template <class T>
RAD_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             const float (&c)[4] RAD_SITE) {
  static_assert(kIsHalf<T>);
#ifdef __CUDA_ARCH__
#define RAD_MMA(type)                                                                                    \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                    \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"                          \
               : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), \
                 "f"(c[2]), "f"(c[3]))
  if constexpr (std::is_same_v<T, bf16>)
    RAD_MMA("bf16");
  else
    RAD_MMA("f16");
#undef RAD_MMA
#elif defined(SIMT_HOST)
  simt::mma_m16n8k16(kHostHalf<T>, d, a, b, c, RAD_HERE);
#endif
}

// ---- named barriers, mbarrier, TMA (sm_90)
// --------------------------------------------------------------------

RAD_DEVICE void named_barrier_sync(int id, int threads RAD_SITE) {
#ifdef __CUDA_ARCH__
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#elif defined(SIMT_HOST)
  simt::barrier_sync(id, threads, 0, RAD_HERE);
#endif
}
RAD_DEVICE void named_barrier_arrive(int id, int threads RAD_SITE) {
#ifdef __CUDA_ARCH__
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#elif defined(SIMT_HOST)
  simt::barrier_arrive(id, threads, RAD_HERE);
#endif
}

RAD_DEVICE void mbarrier_init(uint64_t* barrier, int arrivals RAD_SITE) {
#ifdef __CUDA_ARCH__
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(barrier)), "r"(arrivals)
               : "memory");
#elif defined(SIMT_HOST)
  simt::mbarrier_init(barrier, arrivals, RAD_HERE);
#endif
}
// Makes initialised mbarriers visible to the asynchronous copies; a __syncthreads follows.
RAD_DEVICE void mbarrier_init_fence() {
#ifdef __CUDA_ARCH__
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
RAD_DEVICE void mbarrier_arrive(uint64_t* barrier RAD_SITE) {
#ifdef __CUDA_ARCH__
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(barrier)) : "memory");
#elif defined(SIMT_HOST)
  simt::mbarrier_arrive(barrier, 0, RAD_HERE);
#endif
}
// Arrives once and announces the bytes that asynchronous copies will bring in this phase.
RAD_DEVICE void mbarrier_arrive_expect(uint64_t* barrier, int bytes RAD_SITE) {
#ifdef __CUDA_ARCH__
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(barrier)),
               "r"(bytes)
               : "memory");
#elif defined(SIMT_HOST)
  simt::mbarrier_arrive(barrier, bytes, RAD_HERE);
#endif
}
// Returns once the phase of this parity (0 for the first) is complete.
RAD_DEVICE void mbarrier_wait(uint64_t* barrier, int parity RAD_SITE) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "try_%=: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra try_%=;\n"
      "}" ::"r"(smem_address(barrier)),
      "r"(parity)
      : "memory");
#elif defined(SIMT_HOST)
  simt::mbarrier_wait(barrier, parity, RAD_HERE);
#endif
}

// The map's box at element (x, y) into shared memory; zeros outside the tensor. Counts on the mbarrier.
RAD_DEVICE void tma_load_2d(void* dst, const TensorMap* map, int x, int y, uint64_t* barrier RAD_SITE) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2,%3}], "
      "[%4];" ::"r"(smem_address(dst)),
      "l"(map), "r"(x), "r"(y), "r"(smem_address(barrier))
      : "memory");
#elif defined(SIMT_HOST)
  simt::tma_load(dst, *map, x, y, barrier, RAD_HERE);
#endif
}
// A contiguous copy; addresses and bytes are multiples of 16.
RAD_DEVICE void bulk_load(void* dst, const void* src, int bytes, uint64_t* barrier RAD_SITE) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          smem_address(dst)),
      "l"(src), "r"(bytes), "r"(smem_address(barrier))
      : "memory");
#elif defined(SIMT_HOST)
  simt::bulk_load(dst, src, bytes, barrier, RAD_HERE);
#endif
}
// Between plain stores to shared memory and asynchronous reads of them (wgmma, TMA stores).
RAD_DEVICE void fence_proxy_async() {
#ifdef __CUDA_ARCH__
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#elif defined(SIMT_HOST)
  simt::proxy_fence();
#endif
}

}  // namespace rad::cuda
