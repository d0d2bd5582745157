// Eight elements a thread: those whose noise is one Philox call, and their codes.
#pragma once
#include "cuda/common.cuh"

namespace rad::cuda {

constexpr int kOctet = 8;

// Elements [first, first + 8), zeros from n on.
template <class T>
RAD_DEVICE void load_octet(const T* from, int64_t first, int64_t n, bool vectors, T (&item)[kOctet]) {
  constexpr int kCount = kPerVector<T>;
  if (vectors && first + kOctet <= n) {
#pragma unroll
    for (int v = 0; v < kOctet / kCount; ++v) {
      const auto part = reinterpret_cast<const Vector<T, kCount>*>(from + first)[v];
#pragma unroll
      for (int e = 0; e < kCount; ++e) item[v * kCount + e] = part.item[e];
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < kOctet; ++e) item[e] = first + e < n ? from[first + e] : narrow<T>(0);
}

template <class T>
RAD_DEVICE void store_octet(T* to, int64_t first, int64_t n, bool vectors, const T (&item)[kOctet]) {
  constexpr int kCount = kPerVector<T>;
  if (vectors && first + kOctet <= n) {
#pragma unroll
    for (int v = 0; v < kOctet / kCount; ++v) {
      Vector<T, kCount> part;
#pragma unroll
      for (int e = 0; e < kCount; ++e) part.item[e] = item[v * kCount + e];
      reinterpret_cast<Vector<T, kCount>*>(to + first)[v] = part;
    }
    return;
  }
#pragma unroll
  for (int e = 0; e < kOctet; ++e)
    if (first + e < n) to[first + e] = item[e];
}

// The `bits` bytes of octet `o`, lowest code first.
RAD_DEVICE void store_octet_codes(char* plane, int64_t o, int bits, uint64_t codes) {
  switch (bits) {
    case 8:
      reinterpret_cast<uint64_t*>(plane)[o] = codes;
      break;
    case 4:
      reinterpret_cast<uint32_t*>(plane)[o] = static_cast<uint32_t>(codes);
      break;
    case 2:
      reinterpret_cast<uint16_t*>(plane)[o] = static_cast<uint16_t>(codes);
      break;
    default:
      reinterpret_cast<uint8_t*>(plane)[o] = static_cast<uint8_t>(codes);
  }
}

RAD_DEVICE uint64_t load_octet_codes(const char* plane, int64_t o, int bits) {
  switch (bits) {
    case 8:
      return reinterpret_cast<const uint64_t*>(plane)[o];
    case 4:
      return reinterpret_cast<const uint32_t*>(plane)[o];
    case 2:
      return reinterpret_cast<const uint16_t*>(plane)[o];
    default:
      return reinterpret_cast<const uint8_t*>(plane)[o];
  }
}

}  // namespace rad::cuda
