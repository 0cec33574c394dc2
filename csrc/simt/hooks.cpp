// What the compiler has the kernels call: -fsanitize=thread reports every access to memory to
// functions of these names (GCC, libsanitizer/tsan/tsan_interface.h).

#include "check.h"
#include "findings.h"

using simt::check_access;
#define SIMT_CODE __builtin_return_address(0)

extern "C" {

// Called before main: a program of the check build tells at its end what was found.
void __tsan_init() {
    if (!simt::checking) simt::tell_at_end();
    simt::checking = true;
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

#define SIMT_SIZE(n)                                   \
    void __tsan_read##n(void* p) {                     \
        check_access(p, n, false, SIMT_CODE);          \
    }                                                  \
    void __tsan_write##n(void* p) {                    \
        check_access(p, n, true, SIMT_CODE);           \
    }                                                  \
    void __tsan_unaligned_read##n(void* p) {           \
        check_access(p, n, false, SIMT_CODE);          \
    }                                                  \
    void __tsan_unaligned_write##n(void* p) {          \
        check_access(p, n, true, SIMT_CODE);           \
    }                                                  \
    void __tsan_volatile_read##n(void* p) {            \
        simt::check_volatile(p, n, false, SIMT_CODE);  \
    }                                                  \
    void __tsan_volatile_write##n(void* p) {           \
        simt::check_volatile(p, n, true, SIMT_CODE);   \
    }                                                  \
    void __tsan_unaligned_volatile_read##n(void* p) {  \
        check_access(p, n, false, SIMT_CODE);          \
    }                                                  \
    void __tsan_unaligned_volatile_write##n(void* p) { \
        check_access(p, n, true, SIMT_CODE);           \
    }
SIMT_SIZE(1)
SIMT_SIZE(2)
SIMT_SIZE(4)
SIMT_SIZE(8)
SIMT_SIZE(16)
#undef SIMT_SIZE

void __tsan_read_range(void* p, size_t bytes) {
    check_access(p, bytes, false, SIMT_CODE);
}
void __tsan_write_range(void* p, size_t bytes) {
    check_access(p, bytes, true, SIMT_CODE);
}

// Atomics of the host's code in a kernel's file: done, not watched.
#define SIMT_ATOMIC(bits, T)                                                                      \
    T __tsan_atomic##bits##_load(const volatile T* p, int) {                                      \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                              \
    }                                                                                             \
    void __tsan_atomic##bits##_store(volatile T* p, T x, int) {                                   \
        __atomic_store_n(p, x, __ATOMIC_SEQ_CST);                                                 \
    }                                                                                             \
    T __tsan_atomic##bits##_exchange(volatile T* p, T x, int) {                                   \
        return __atomic_exchange_n(p, x, __ATOMIC_SEQ_CST);                                       \
    }                                                                                             \
    T __tsan_atomic##bits##_fetch_add(volatile T* p, T x, int) {                                  \
        return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST);                                        \
    }                                                                                             \
    T __tsan_atomic##bits##_fetch_sub(volatile T* p, T x, int) {                                  \
        return __atomic_fetch_sub(p, x, __ATOMIC_SEQ_CST);                                        \
    }                                                                                             \
    T __tsan_atomic##bits##_fetch_and(volatile T* p, T x, int) {                                  \
        return __atomic_fetch_and(p, x, __ATOMIC_SEQ_CST);                                        \
    }                                                                                             \
    T __tsan_atomic##bits##_fetch_or(volatile T* p, T x, int) {                                   \
        return __atomic_fetch_or(p, x, __ATOMIC_SEQ_CST);                                         \
    }                                                                                             \
    bool __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* old, T x, int, int) {    \
        return __atomic_compare_exchange_n(p, old, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }                                                                                             \
    bool __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* old, T x, int, int) {      \
        return __atomic_compare_exchange_n(p, old, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); \
    }
SIMT_ATOMIC(8, uint8_t)
SIMT_ATOMIC(16, uint16_t)
SIMT_ATOMIC(32, uint32_t)
SIMT_ATOMIC(64, uint64_t)
#undef SIMT_ATOMIC
void __tsan_atomic_thread_fence(int) {}

}  // extern "C"
