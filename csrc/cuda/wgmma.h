// Products of a warpgroup, sm_90a: 128 threads, four warps whose number begins at a multiple of four,
// begin d = a b or d += a b, 64 x N x 16 (x 32 of 8 bits), and go on:
//
//     ptx::wgmma_fence();                          // before, and whenever d or a's registers were used
//     ptx::wgmma<bfloat16>(d, a, b, accumulate);   // as often as wanted
//     ptx::wgmma_commit();
//     ptx::wgmma_wait<0>(d);                       // until then d is nobody's, nor may a or b change
//
// d[e] of lane l of warp w is of row 16 w + l / 4 + 8 (e / 2 % 2), column 2 (l % 4) + e % 2 + 8 (e / 4).
// N is 8, 16, 32, 64, 96, 128, 192 or 256. Source: PTX ISA 8.5, "Asynchronous Warpgroup Level Matrix
// Instructions".

#pragma once

#include <type_traits>

#include "ptx.h"

namespace ptx {

// How 16-byte pieces of an operand change places, so that a column lies in different banks; the
// numbers are the instruction's own.
enum class Swizzle : uint64_t { none = 0, bytes_128 = 1, bytes_64 = 2, bytes_32 = 3 };

// An operand in shared memory: 64 x 16 (a) or N x 16 (b, by its columns). With T = 8 numbers (or 16 of
// 8 bits) in 16 bytes and S swizzled ones in a line, number (row, k) is, before it is swizzled,
//
//     K-major                    row % 8 S + row / 8 stride + k
//         without a swizzle      row % 8 T + row / 8 stride + k % T + k / T leading
//     transposed                 row % S + row / S leading + k % 8 S + k / 8 stride
//         without a swizzle      row % T + row / T stride + k % 8 T + k / 8 leading
//
// after `tile`, which is at a multiple of 16 bytes (a swizzle's pattern begins at one of 1024).
// Source: PTX ISA 8.5, "Canonical Layouts" and "Matrix Descriptor Format".
__device__ inline uint64_t matrix_descriptor(const void* tile, unsigned leading_bytes,
                                             unsigned stride_bytes, Swizzle swizzle) {
    return uint64_t(shared_address(tile) >> 4 & 0x3FFF) | uint64_t(leading_bytes >> 4) << 16 |
           uint64_t(stride_bytes >> 4) << 32 | uint64_t(swizzle) << 62;
}

// The descriptor of what lies so many bytes after another's tile. In a loop the compiler would keep those
// of all steps in registers; each time it is made again.
__device__ inline uint64_t descriptor_after(uint64_t descriptor, unsigned bytes) {
    PTX(asm volatile("" : "+l"(descriptor)), );
    return descriptor + (bytes >> 4);
}

// In a loop, what is computed from x is computed each time, likewise.
__device__ inline void make_again([[maybe_unused]] int& x) {
    PTX(asm volatile("" : "+r"(x)), );
}

__device__ inline void wgmma_fence() {
    PTX(asm volatile("wgmma.fence.sync.aligned;" ::: "memory"), simt::wgmma_fence());
}
// Sums that were set are in their registers from now on, and not constants that the compiler would put
// there between products, which then wait for each other.
template <int registers>
__device__ inline void keep_in_registers([[maybe_unused]] float (&d)[registers]) {
    PTX(for (float& sum : d) asm volatile("" : "+f"(sum)::"memory"), );
}
__device__ inline void wgmma_commit() {
    PTX(asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"), simt::wgmma_commit());
}
// Wait until at most `keep` groups are under way; d is that of the others.
template <int keep, int registers>
__device__ inline void wgmma_wait([[maybe_unused]] float (&d)[registers]) {
    PTX(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(keep) : "memory");
        for (float& sum : d) asm volatile("" : "+f"(sum)::"memory"), simt::wgmma_wait(keep));
}

#ifdef __CUDACC__

#define WGMMA_NAMES_4 "%0, %1, %2, %3"
#define WGMMA_NAMES_8 WGMMA_NAMES_4 ", %4, %5, %6, %7"
#define WGMMA_NAMES_16 WGMMA_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_NAMES_32 WGMMA_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_48 WGMMA_NAMES_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_NAMES_64 WGMMA_NAMES_48 \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_96 WGMMA_NAMES_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_NAMES_128 WGMMA_NAMES_96 \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WGMMA_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_SUMS_8(i) WGMMA_SUMS_4(i), WGMMA_SUMS_4(i + 4)
#define WGMMA_SUMS_16(i) WGMMA_SUMS_8(i), WGMMA_SUMS_8(i + 8)
#define WGMMA_SUMS_32(i) WGMMA_SUMS_16(i), WGMMA_SUMS_16(i + 16)
#define WGMMA_SUMS_48(i) WGMMA_SUMS_32(i), WGMMA_SUMS_16(i + 32)
#define WGMMA_SUMS_64(i) WGMMA_SUMS_32(i), WGMMA_SUMS_32(i + 32)
#define WGMMA_SUMS_96(i) WGMMA_SUMS_64(i), WGMMA_SUMS_32(i + 64)
#define WGMMA_SUMS_128(i) WGMMA_SUMS_64(i), WGMMA_SUMS_64(i + 64)

#define WGMMA_TEXT(columns, types, a, b, accumulate, flags)                                  \
    "{\n.reg .pred p;\nsetp.ne.b32 p, " accumulate ", 0;\nwgmma.mma_async.sync.aligned.m64n" \
    #columns types " {" WGMMA_NAMES(columns) "}, " a ", " b ", p, 1, 1" flags ";\n}"
#define WGMMA_F16 "k16.f32.f16.f16"
#define WGMMA_BF16 "k16.f32.bf16.bf16"
#define WGMMA_E4M3 "k32.f32.e4m3.e4m3"
#define WGMMA_NAMES(columns) WGMMA_NAMES_OF_##columns
#define WGMMA_NAMES_OF_8 WGMMA_NAMES_4
#define WGMMA_NAMES_OF_16 WGMMA_NAMES_8
#define WGMMA_NAMES_OF_32 WGMMA_NAMES_16
#define WGMMA_NAMES_OF_64 WGMMA_NAMES_32
#define WGMMA_NAMES_OF_96 WGMMA_NAMES_48
#define WGMMA_NAMES_OF_128 WGMMA_NAMES_64
#define WGMMA_NAMES_OF_192 WGMMA_NAMES_96
#define WGMMA_NAMES_OF_256 WGMMA_NAMES_128

// For each number of columns, the operands that follow its sums.
#define WGMMA_DEVICE(columns, registers, n0, n1, n2, n3, n4, n5, n6)                                \
    template <typename T, int a_transposed, int b_transposed>                                       \
    __device__ inline void multiply(float (&d)[registers], uint64_t a, uint64_t b,                  \
                                    int accumulate) {                                               \
        if constexpr (std::is_same_v<T, __nv_fp8_e4m3>)                                             \
            asm volatile(WGMMA_TEXT(columns, WGMMA_E4M3, n0, n1, n2, "")                            \
                         : WGMMA_SUMS_##registers(0)                                                \
                         : "l"(a), "l"(b), "r"(accumulate));                                        \
        else if constexpr (std::is_same_v<T, __half>)                                               \
            asm volatile(WGMMA_TEXT(columns, WGMMA_F16, n0, n1, n2, ", " n3 ", " n4)                \
                         : WGMMA_SUMS_##registers(0)                                                \
                         : "l"(a), "l"(b), "r"(accumulate), "n"(a_transposed), "n"(b_transposed));  \
        else                                                                                        \
            asm volatile(WGMMA_TEXT(columns, WGMMA_BF16, n0, n1, n2, ", " n3 ", " n4)               \
                         : WGMMA_SUMS_##registers(0)                                                \
                         : "l"(a), "l"(b), "r"(accumulate), "n"(a_transposed), "n"(b_transposed));  \
    }                                                                                               \
    template <typename T, int b_transposed>                                                         \
    __device__ inline void multiply(float (&d)[registers], const uint32_t (&a)[4], uint64_t b,      \
                                    int accumulate) {                                               \
        if constexpr (std::is_same_v<T, __half>)                                                    \
            asm volatile(WGMMA_TEXT(columns, WGMMA_F16, "{" n0 ", " n1 ", " n2 ", " n3 "}", n4, n5, \
                                    ", " n6)                                                        \
                         : WGMMA_SUMS_##registers(0)                                                \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),     \
                           "n"(b_transposed));                                                      \
        else                                                                                        \
            asm volatile(WGMMA_TEXT(columns, WGMMA_BF16, "{" n0 ", " n1 ", " n2 ", " n3 "}", n4, n5,\
                                    ", " n6)                                                        \
                         : WGMMA_SUMS_##registers(0)                                                \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),     \
                           "n"(b_transposed));                                                      \
    }
WGMMA_DEVICE(8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10")
WGMMA_DEVICE(16, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14")
WGMMA_DEVICE(32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
WGMMA_DEVICE(64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
WGMMA_DEVICE(96, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
WGMMA_DEVICE(128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
WGMMA_DEVICE(192, 96, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
WGMMA_DEVICE(256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#endif

#ifndef __CUDACC__
template <typename T>
constexpr simt::Kind kKind = std::is_same_v<T, __half>          ? simt::Kind::f16
                             : std::is_same_v<T, __nv_bfloat16> ? simt::Kind::bf16
                                                                : simt::Kind::e4m3;
#endif

// T is __nv_bfloat16, __half or __nv_fp8_e4m3, of a and b; sums are made in float. Numbers of 8 bits
// are K-major.
template <typename T, bool a_transposed = false, bool b_transposed = false, int registers>
__device__ inline void wgmma(float (&d)[registers], uint64_t a, uint64_t b, bool accumulate SITE) {
    static_assert(sizeof(T) == 2 || !(a_transposed || b_transposed));
    PTX((multiply<T, a_transposed, b_transposed>(d, a, b, accumulate)),
        simt::wgmma({kKind<T>, 2 * registers, a_transposed, b_transposed, accumulate}, d, nullptr,
                    a, b, site));
}
// A's pieces in registers, as those of mma_bf16: each warp has its 16 rows.
template <typename T, bool b_transposed = false, int registers>
__device__ inline void wgmma(float (&d)[registers], const uint32_t (&a)[4], uint64_t b,
                             bool accumulate SITE) {
    static_assert(sizeof(T) == 2);
    PTX((multiply<T, b_transposed>(d, a, b, accumulate)),
        simt::wgmma({kKind<T>, 2 * registers, false, b_transposed, accumulate}, d, a, 0, b, site));
}

}  // namespace ptx
