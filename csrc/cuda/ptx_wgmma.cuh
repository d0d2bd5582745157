// wgmma: products of a warpgroup from shared memory, of sm_90a alone. A companion of ptx.cuh, with its rules.
#pragma once
#include "cuda/ptx.cuh"

// Device code for sm_90a, or the host.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define RAD_HAS_WGMMA
#endif

namespace rad::cuda {

// Whether the current device has wgmma and kKernel was compiled for it: elsewhere its body is empty, and then
// it has no shared memory of its own.
template <auto kKernel>
bool wgmma_available() {
#ifdef __CUDACC__
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (major != 9 || minor != 0) return false;
  static const bool compiled = [] {
    cudaFuncAttributes found{};
    return cudaFuncGetAttributes(&found, reinterpret_cast<const void*>(kKernel)) == cudaSuccess &&
           found.sharedSizeBytes > 0;
  }();
  return compiled;
#else
  return true;
#endif
}

// Operand whose rows hold 64 consecutive k of 16 bits under the 128-byte swizzle, 8-row groups 1024 bytes
// apart.
RAD_DEVICE uint64_t wgmma_operand_k128(const void* p) {
  constexpr uint64_t kLeading = 1, kStride = 1024 >> 4, kSwizzle128 = 1;
  return static_cast<uint64_t>(smem_address(p) >> 4 & 0x3FFF) | kLeading << 16 | kStride << 32 |
         kSwizzle128 << 62;
}
RAD_DEVICE void wgmma_fence(RAD_SITE_FIRST) {
#ifdef __CUDA_ARCH__
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#elif defined(SIMT_HOST)
  simt::wgmma_fence(RAD_HERE);
#endif
}
RAD_DEVICE void wgmma_commit(RAD_SITE_FIRST) {
#ifdef __CUDA_ARCH__
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#elif defined(SIMT_HOST)
  simt::wgmma_commit(RAD_HERE);
#endif
}
template <int GroupsLeft>
RAD_DEVICE void wgmma_wait(RAD_SITE_FIRST) {
#ifdef __CUDA_ARCH__
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GroupsLeft) : "memory");
#elif defined(SIMT_HOST)
  simt::wgmma_wait(GroupsLeft, RAD_HERE);
#endif
}
// d (+)= a [64, 16] b [64, 16]^T. d belongs to the hardware until the wait that covers its commit group.
template <class T>
RAD_DEVICE void wgmma_m64n64k16(float (&d)[32], uint64_t a, uint64_t b, bool accumulate RAD_SITE) {
  static_assert(kIsHalf<T>);
#ifdef __CUDA_ARCH__
#define RAD_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define RAD_WGMMA(type)                                                                             \
  asm volatile(                                                                                     \
      "{\n"                                                                                         \
      ".reg .pred p;\n"                                                                             \
      "setp.ne.b32 p, %34, 0;\n"                                                                    \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                   \
      " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"    \
      "%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, p, 1, 1, 0, 0;\n"                                \
      "}"                                                                                           \
      : RAD_D4(0), RAD_D4(4), RAD_D4(8), RAD_D4(12), RAD_D4(16), RAD_D4(20), RAD_D4(24), RAD_D4(28) \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))
  if constexpr (std::is_same_v<T, bf16>)
    RAD_WGMMA("bf16");
  else
    RAD_WGMMA("f16");
#undef RAD_WGMMA
#undef RAD_D4
#elif defined(SIMT_HOST)
  simt::wgmma_issue(kHostHalf<T>, 64, false, d, a, b, accumulate, RAD_HERE);
#endif
}

// Operand whose k lie one after another, 128 bytes each: 64 consecutive items of 16 bits under the 128-byte
// swizzle. The next 64 items are `panel_bytes` further.
RAD_DEVICE uint64_t wgmma_operand_mn128(const void* p, int panel_bytes) {
  constexpr uint64_t kStride = 1024 >> 4, kSwizzle128 = 1;  // from 8 k to the next 8
  return static_cast<uint64_t>(smem_address(p) >> 4 & 0x3FFF) |
         static_cast<uint64_t>(panel_bytes >> 4) << 16 | kStride << 32 | kSwizzle128 << 62;
}
// d (+)= a^T b of a [16, 64] and b [16, 256], both operands as wgmma_operand_mn128 has them.
template <class T>
RAD_DEVICE void wgmma_m64n256k16_mn(float (&d)[128], uint64_t a, uint64_t b, bool accumulate RAD_SITE) {
  static_assert(kIsHalf<T>);
#ifdef __CUDA_ARCH__
#define RAD_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define RAD_D16(i) RAD_D4(i), RAD_D4(i + 4), RAD_D4(i + 8), RAD_D4(i + 12)
#define RAD_WGMMA(type)                                                                           \
  asm volatile(                                                                                   \
      "{\n"                                                                                       \
      ".reg .pred p;\n"                                                                           \
      "setp.ne.b32 p, %130, 0;\n"                                                                 \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                                \
      " "                                                                                         \
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                                   \
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"                          \
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"                          \
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"                          \
      "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"                          \
      "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"                          \
      "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"              \
      "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, "        \
      "%128, %129, p, 1, 1, 1, 1;\n"                                                              \
      "}"                                                                                         \
      : RAD_D16(0), RAD_D16(16), RAD_D16(32), RAD_D16(48), RAD_D16(64), RAD_D16(80), RAD_D16(96), \
        RAD_D16(112)                                                                              \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))
  if constexpr (std::is_same_v<T, bf16>)
    RAD_WGMMA("bf16");
  else
    RAD_WGMMA("f16");
#undef RAD_WGMMA
#undef RAD_D16
#undef RAD_D4
#elif defined(SIMT_HOST)
  simt::wgmma_issue(kHostHalf<T>, 256, true, d, a, b, accumulate, RAD_HERE);
#endif
}

}  // namespace rad::cuda
