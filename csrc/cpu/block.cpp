#include "cpu/block.h"

#include "cpu/lanes.h"

namespace rad::cpu {
namespace {

// Loops of one fixed length, so that they vectorise. Function multiversioning takes no templates, so one
// overload a type.
template <class T>
RAD_INLINE void widen_all(const T* x, Accumulate<T>* out) {
  for (int64_t i = 0; i < kBlock; ++i) out[i] = widen(x[i]);
}

template <class T>
RAD_INLINE void narrow_all(const Accumulate<T>* x, T* out) {
  for (int64_t i = 0; i < kBlock; ++i) out[i] = narrow<T>(x[i]);
}

template <class T>
RAD_INLINE void multiply_all(const T* dy, const Accumulate<T>* factor, T* out) {
  for (int64_t i = 0; i < kBlock; ++i) out[i] = narrow<T>(widen(dy[i]) * factor[i]);
}

#define RAD_LOOPS(T)                                                                          \
  RAD_VECTOR_CLONES void widen_block(const T* x, Accumulate<T>* out) { widen_all(x, out); }   \
  RAD_VECTOR_CLONES void narrow_block(const Accumulate<T>* x, T* out) { narrow_all(x, out); } \
  RAD_VECTOR_CLONES void multiply_values(const T* dy, const Accumulate<T>* factor, T* out) {  \
    multiply_all(dy, factor, out);                                                            \
  }
RAD_LOOPS(float)
RAD_LOOPS(double)
RAD_LOOPS(BFloat16)
RAD_LOOPS(Half)
#undef RAD_LOOPS

}  // namespace

template <class T>
void load_block(const T* x, int64_t count, Block<Accumulate<T>>& out) {
  if (count == kBlock) return widen_block(x, out.value);
  for (int64_t i = 0; i < kBlock; ++i) out.value[i] = widen(x[i < count ? i : 0]);
}

template <class T>
void store_block(const Block<Accumulate<T>>& values, int64_t count, T* out) {
  if (count == kBlock) return narrow_block(values.value, out);
  for (int64_t i = 0; i < count; ++i) out[i] = narrow<T>(values.value[i]);
}

template <class T>
void multiply_block(const T* dy, const Block<Accumulate<T>>& factor, int64_t count, T* out) {
  if (count == kBlock) return multiply_values(dy, factor.value, out);
  for (int64_t i = 0; i < count; ++i) out[i] = narrow<T>(widen(dy[i]) * factor.value[i]);
}

#define RAD_INSTANTIATE(T)                                                \
  template void load_block<T>(const T*, int64_t, Block<Accumulate<T>>&);  \
  template void store_block<T>(const Block<Accumulate<T>>&, int64_t, T*); \
  template void multiply_block<T>(const T*, const Block<Accumulate<T>>&, int64_t, T*);
RAD_INSTANTIATE(float)
RAD_INSTANTIATE(double)
RAD_INSTANTIATE(BFloat16)
RAD_INSTANTIATE(Half)
#undef RAD_INSTANTIATE

}  // namespace rad::cpu
