// What GCC's -fsanitize=thread makes compiled code call for every access, and -fsanitize=alignment for a
// pointer that its type does not allow: the checker stands in for libtsan and libubsan.
#include "checker.h"

using simt::checker::Kind;
using simt::checker::on_access;
using simt::checker::where_code;

#define SIMT_CALLER where_code(__builtin_return_address(0))

extern "C" {

// Called by the static constructor of every instrumented object.
void __tsan_init() { simt::checker::enable(); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

#define SIMT_ACCESS(n)                                                                             \
  void __tsan_read##n(void* p) { on_access(p, n, false, Kind::kPlain, n, SIMT_CALLER); }           \
  void __tsan_write##n(void* p) { on_access(p, n, true, Kind::kPlain, n, SIMT_CALLER); }           \
  void __tsan_unaligned_read##n(void* p) { on_access(p, n, false, Kind::kPlain, 1, SIMT_CALLER); } \
  void __tsan_unaligned_write##n(void* p) { on_access(p, n, true, Kind::kPlain, 1, SIMT_CALLER); }
SIMT_ACCESS(1)
SIMT_ACCESS(2)
SIMT_ACCESS(4)
SIMT_ACCESS(8)
SIMT_ACCESS(16)

void __tsan_read_range(void* p, unsigned long n) { on_access(p, n, false, Kind::kPlain, 1, SIMT_CALLER); }
void __tsan_write_range(void* p, unsigned long n) { on_access(p, n, true, Kind::kPlain, 1, SIMT_CALLER); }

// Atomics of the standard library; kernels go through atomic_access.
#define SIMT_ATOMIC(bits, T)                                                                               \
  T __tsan_atomic##bits##_load(const T* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }           \
  void __tsan_atomic##bits##_store(T* p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }           \
  T __tsan_atomic##bits##_exchange(T* p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_add(T* p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
  T __tsan_atomic##bits##_fetch_sub(T* p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
  int __tsan_atomic##bits##_compare_exchange_strong(T* p, T* c, T v, int, int) {                           \
    return __atomic_compare_exchange_n(p, c, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                    \
  }                                                                                                        \
  int __tsan_atomic##bits##_compare_exchange_weak(T* p, T* c, T v, int, int) {                             \
    return __atomic_compare_exchange_n(p, c, v, 1, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                    \
  }
SIMT_ATOMIC(8, uint8_t)
SIMT_ATOMIC(16, uint16_t)
SIMT_ATOMIC(32, uint32_t)
SIMT_ATOMIC(64, uint64_t)

// Needed besides the accesses: the compiler may split a vector store into scalar ones that are aligned.
struct SimtTypeMismatch {  // libubsan's TypeMismatchData
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(SimtTypeMismatch* what, uintptr_t pointer) {
  simt::checker::on_misaligned(pointer, 1ul << what->log_alignment,
                               {what->file, static_cast<int>(what->line)});
}

}  // extern "C"
