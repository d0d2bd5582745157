// Device buffers for tests: real ones under nvcc, the harness's checked ones under g++.
#pragma once
#include <cstring>
#include <utility>
#include <vector>

#include "testing.h"

#ifdef __CUDACC__
#include <cuda.h>
#include <cuda_runtime.h>
#else
#include "simt/simt.h"
#endif

namespace testing {

#ifdef __CUDACC__
inline void* allocate(size_t bytes) {
  void* p = nullptr;
  if (cudaMalloc(&p, bytes ? bytes : 1) != cudaSuccess) throw Failure("cudaMalloc");
  return p;
}
inline void release(void* p) { cudaFree(p); }
inline void upload(void* dst, const void* src, size_t bytes) {
  cudaMemcpy(dst, src, bytes, cudaMemcpyHostToDevice);
}
inline void download(void* dst, const void* src, size_t bytes) {
  const cudaError_t status =
      cudaMemcpy(dst, src, bytes, cudaMemcpyDeviceToHost);  // waits for the kernels before it
  if (status != cudaSuccess) throw Failure(cudaGetErrorString(status));
}
#else
inline void* allocate(size_t bytes) { return simt::device_alloc(bytes); }
inline void release(void* p) { simt::device_free(p); }
inline void upload(void* dst, const void* src, size_t bytes) {
  if (bytes) std::memcpy(dst, src, bytes);
  simt::device_mark_initialised(dst, bytes);
}
inline void download(void* dst, const void* src, size_t bytes) {
  if (bytes) std::memcpy(dst, src, bytes);
}
#endif

// `shift` elements in front of data() make the pointer unaligned; bytes outside are off limits to kernels.
template <class T>
class Device {
 public:
  explicit Device(size_t count, size_t shift = 0)
      : count_(count), shift_(shift), base_(static_cast<T*>(allocate((count + shift) * sizeof(T)))) {}
  explicit Device(const std::vector<T>& values, size_t shift = 0) : Device(values.size(), shift) {
    upload(data(), values.data(), count_ * sizeof(T));
  }
  ~Device() { release(base_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  T* data() const { return base_ + shift_; }
  std::vector<T> get() const {
    std::vector<T> values(count_);
    download(values.data(), data(), count_ * sizeof(T));
    return values;
  }

 private:
  size_t count_, shift_;
  T* base_;
};

}  // namespace testing
