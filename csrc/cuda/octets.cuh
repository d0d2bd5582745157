// Eight elements a thread: those whose noise is one Philox call, and their codes.
#pragma once
#include "cuda/coder.cuh"

namespace rad::cuda {

// Octet o as whole vectors.
template <class T>
RAD_DEVICE void load_whole(const T* from, int64_t o, T (&item)[kOctet]) {
  constexpr int kCount = kPerVector<T>;
#pragma unroll
  for (int v = 0; v < kOctet / kCount; ++v) {
    const auto part = reinterpret_cast<const Vector<T, kCount>*>(from + o * kOctet)[v];
#pragma unroll
    for (int e = 0; e < kCount; ++e) item[v * kCount + e] = part.item[e];
  }
}
template <class T>
RAD_DEVICE void store_whole(T* to, int64_t o, const T (&item)[kOctet]) {
  constexpr int kCount = kPerVector<T>;
#pragma unroll
  for (int v = 0; v < kOctet / kCount; ++v) {
    Vector<T, kCount> part;
#pragma unroll
    for (int e = 0; e < kCount; ++e) part.item[e] = item[v * kCount + e];
    reinterpret_cast<Vector<T, kCount>*>(to + o * kOctet)[v] = part;
  }
}

// Elements [first, first + 8), zeros from n on.
template <class T>
RAD_DEVICE void load_octet(const T* from, int64_t first, int64_t n, bool vectors, T (&item)[kOctet]) {
  if (vectors && first + kOctet <= n) return load_whole(from, first / kOctet, item);
#pragma unroll
  for (int e = 0; e < kOctet; ++e) item[e] = first + e < n ? from[first + e] : narrow<T>(0);
}

template <class T>
RAD_DEVICE void store_octet(T* to, int64_t first, int64_t n, bool vectors, const T (&item)[kOctet]) {
  if (vectors && first + kOctet <= n) return store_whole(to, first / kOctet, item);
#pragma unroll
  for (int e = 0; e < kOctet; ++e)
    if (first + e < n) to[first + e] = item[e];
}

// a / b of numbers that are not negative, in 32 bits where these do.
RAD_DEVICE int64_t quotient(int64_t a, int64_t b) {
  if ((a | b) >> 32 == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// Where element i of [outer, count, inner] stands, followed from one to the next without a division.
struct AxisPlace {
  int64_t outer, at, within, count, inner;

  RAD_DEVICE AxisPlace(int64_t i, int64_t count_, int64_t inner_) : count(count_), inner(inner_) {
    const int64_t line = inner == 1 ? i : quotient(i, inner);
    within = i - line * inner;
    outer = line < count ? 0 : quotient(line, count);
    at = line - outer * count;
  }
  RAD_DEVICE void next() {
    if (++within < inner) return;
    within = 0;
    if (++at < count) return;
    at = 0;
    ++outer;
  }
};

constexpr int kAhead = 2;  // octets of a thread in flight together

inline LaunchConfig over_octets(int64_t n, void* stream) {
  const int64_t octets = (n + kOctet - 1) / kOctet;
  return {dim3(blocks_for(octets, kThreads * kAhead, kWalkingBlocks)), dim3(kThreads), 0, stream};
}

// body(octet, count, items, store) for every octet of `from`: of its items the first `count` exist, and
// store(to, results) writes as many.
template <class T, class Body>
RAD_DEVICE void each_octet(const T* from, int64_t n, bool vectors, const Body& body) {
  const int64_t whole = vectors ? n / kOctet : 0, all = (n + kOctet - 1) / kOctet;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  int64_t o = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
#pragma unroll 1
  for (; o + (kAhead - 1) * step < whole; o += kAhead * step) {
    T item[kAhead][kOctet];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) load_whole(from, o + a * step, item[a]);
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t octet = o + a * step;
      body(octet, int64_t{kOctet}, item[a],
           [&](T* to, const T(&result)[kOctet]) { store_whole(to, octet, result); });
    }
  }
#pragma unroll 1
  for (; o < all; o += step) {
    T item[kOctet];
    load_octet(from, o * kOctet, n, vectors, item);
    body(o, n - o * kOctet, item,
         [&](T* to, const T(&result)[kOctet]) { store_octet(to, o * kOctet, n, vectors, result); });
  }
}

// The `bits` bytes of octet `o`, lowest code first.
RAD_DEVICE void store_octet_codes(char* plane, int64_t o, int bits, uint64_t codes) {
  switch (opaque(bits)) {
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
  switch (opaque(bits)) {
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
