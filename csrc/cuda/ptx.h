// Instructions of the GPU that CUDA C++ has no word for, each as a function: the instruction itself
// under nvcc, the emulator's account of it under g++ (csrc/simt/api.h says what each does there).
//
// Source: PTX ISA 8.5. What needs more than sm_80 says so.

#pragma once

#include "../simt/simt.h"

#ifdef __CUDACC__
#include <cooperative_groups.h>
#include <cuda.h>
#define PTX(device, ...) device
#define SITE
#define ONLY_SITE
#else
using CUtensorMap = simt::TensorMap;
#define PTX(device, ...) __VA_ARGS__
#define SITE , simt::Site site = {}
#define ONLY_SITE simt::Site site = {}
#endif

// What older GPUs do not have: host code does not launch it there, but it is compiled for them too.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define PTX_90(device, ...) __trap()
#else
#define PTX_90(device, ...) PTX(device, __VA_ARGS__)
#endif

namespace ptx {

// An address in shared memory as instructions take it.
__device__ inline uint32_t shared_address(const void* pointer) {
    PTX(return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)),
        return simt::shared_address(pointer));
}

// Named barriers: `threads` of them, a multiple of 32, wait or only arrive.
__device__ inline void bar_sync(int id, int threads SITE) {
    PTX(asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"),
        simt::barrier(id, threads, true, site));
}
__device__ inline void bar_arrive(int id, int threads SITE) {
    PTX(asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"),
        simt::barrier(id, threads, false, site));
}

// Flags in global memory, between grids of one device or of several. All that was done before a flag
// was stored, by this thread or by those that it has waited for, is seen by who has loaded it.
__device__ inline void store_release(uint32_t* flag, uint32_t value SITE) {
    PTX(asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(value) : "memory"),
        simt::store_release(flag, value, site));
}
__device__ inline uint32_t load_acquire(const uint32_t* flag SITE) {
    PTX(uint32_t value;
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
        return value,
        return simt::load_acquire(flag, site));
}

// Copies from global to shared memory that the thread need not wait for. Of 4, 8 or 16 bytes; what is
// past source_bytes becomes 0.
template <int bytes>
__device__ inline void cp_async(void* to, const void* from, int source_bytes = bytes SITE) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16);
    PTX(
        if constexpr (bytes == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                                                ::"r"(shared_address(to)), "l"(from),
                                                "r"(source_bytes) : "memory");
        else asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                          ::"r"(shared_address(to)), "l"(from), "n"(bytes), "r"(source_bytes)
                          : "memory"),
        simt::copy_async(to, from, bytes, source_bytes, site));
}
__device__ inline void cp_async_commit() {
    PTX(asm volatile("cp.async.commit_group;" ::: "memory"), simt::commit_copies());
}
// Wait until at most `keep` of the thread's groups are under way.
template <int keep>
__device__ inline void cp_async_wait() {
    PTX(asm volatile("cp.async.wait_group %0;" ::"n"(keep) : "memory"),
        simt::wait_for_copies(keep));
}

// mbarriers: 64 bits in shared memory. sm_90.
__device__ inline void mbarrier_init(uint64_t* barrier, unsigned count SITE) {
    PTX(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
                     "r"(count) : "memory"),
        simt::mbarrier_init(barrier, count, site));
}
// Makes them known to copies, and to other blocks of the cluster.
__device__ inline void fence_mbarrier_init() {
    PTX(asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"), simt::mbarrier_fence());
}
__device__ inline void mbarrier_arrive(uint64_t* barrier SITE) {
    PTX(asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];"
                     ::"r"(shared_address(barrier)) : "memory"),
        simt::mbarrier_arrive(barrier, 0, site));
}
// ... and at the barrier of another block of the cluster.
__device__ inline void mbarrier_arrive_at(uint64_t* barrier, unsigned rank SITE) {
    PTX(asm volatile("{\n.reg .b32 remote;\n"
                     "mapa.shared::cluster.u32 remote, %0, %1;\n"
                     "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}"
                     ::"r"(shared_address(barrier)), "r"(rank) : "memory"),
        simt::mbarrier_arrive(simt::in_block(barrier, rank), 0, site));
}
__device__ inline void mbarrier_arrive_expect(uint64_t* barrier, unsigned bytes SITE) {
    PTX(asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;"
                     ::"r"(shared_address(barrier)), "r"(bytes) : "memory"),
        simt::mbarrier_arrive(barrier, bytes, site));
}
// Wait for the end of the phase with this parity: 0 for the first one.
__device__ inline void mbarrier_wait(uint64_t* barrier, unsigned parity SITE) {
    PTX(asm volatile("{\n.reg .pred done;\n"
                     "again:\n"
                     "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
                     "@!done bra again;\n}"
                     ::"r"(shared_address(barrier)), "r"(parity) : "memory"),
        simt::mbarrier_wait(barrier, parity, site));
}

// What this thread has written to shared memory becomes visible to copies from there. sm_90.
__device__ inline void fence_proxy_async() {
    PTX(asm volatile("fence.proxy.async.shared::cta;" ::: "memory"), simt::proxy_fence());
}

// Boxes of tensors of two to four dimensions, by the tensor memory accelerator; column is the
// innermost coordinate. sm_90.
__device__ inline void tma_load(void* to, const CUtensorMap* map, uint64_t* barrier, int column,
                                int row SITE) {
    PTX(asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%3, %4}], [%2];"
                     ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(column),
                     "r"(row) : "memory"),
        const int at[] = {column, row};
        simt::tensor_load(to, *map, at, barrier, 1u << simt::cluster_rank(), site));
}
__device__ inline void tma_load(void* to, const CUtensorMap* map, uint64_t* barrier, int column,
                                int row, int plane SITE) {
    PTX(asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%3, %4, %5}], [%2];"
                     ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(column),
                     "r"(row), "r"(plane) : "memory"),
        const int at[] = {column, row, plane};
        simt::tensor_load(to, *map, at, barrier, 1u << simt::cluster_rank(), site));
}
__device__ inline void tma_load(void* to, const CUtensorMap* map, uint64_t* barrier, int column,
                                int row, int plane, int volume SITE) {
    PTX(asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%3, %4, %5, %6}], [%2];"
                     ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(column),
                     "r"(row), "r"(plane), "r"(volume) : "memory"),
        const int at[] = {column, row, plane, volume};
        simt::tensor_load(to, *map, at, barrier, 1u << simt::cluster_rank(), site));
}
// ... into the same place of all blocks of the cluster in cta_mask.
__device__ inline void tma_load_multicast(void* to, const CUtensorMap* map, uint64_t* barrier,
                                          int column, int row, uint16_t cta_mask SITE) {
    PTX(asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;"
                     ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(column),
                     "r"(row), "h"(cta_mask) : "memory"),
        const int at[] = {column, row};
        simt::tensor_load(to, *map, at, barrier, cta_mask, site));
}
__device__ inline void tma_load_multicast(void* to, const CUtensorMap* map, uint64_t* barrier,
                                          int column, int row, int plane, uint16_t cta_mask SITE) {
    PTX(asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;"
                     ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(column),
                     "r"(row), "r"(plane), "h"(cta_mask) : "memory"),
        const int at[] = {column, row, plane};
        simt::tensor_load(to, *map, at, barrier, cta_mask, site));
}
__device__ inline void tma_store(const CUtensorMap* map, const void* from, int column,
                                 int row SITE) {
    PTX(asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];"
                     ::"l"(map), "r"(shared_address(from)), "r"(column), "r"(row) : "memory"),
        const int at[] = {column, row};
        simt::tensor_store(*map, at, from, site));
}
__device__ inline void tma_store(const CUtensorMap* map, const void* from, int column, int row,
                                 int plane SITE) {
    PTX(asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], "
                     "[%1];"
                     ::"l"(map), "r"(shared_address(from)), "r"(column), "r"(row), "r"(plane)
                     : "memory"),
        const int at[] = {column, row, plane};
        simt::tensor_store(*map, at, from, site));
}
// 16-byte multiples, without a map.
__device__ inline void bulk_load(void* to, const void* from, unsigned bytes,
                                 uint64_t* barrier SITE) {
    PTX(asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                     "[%0], [%1], %2, [%3];"
                     ::"r"(shared_address(to)), "l"(from), "r"(bytes),
                     "r"(shared_address(barrier)) : "memory"),
        simt::bulk_load(to, from, bytes, barrier, site));
}
__device__ inline void bulk_store(void* to, const void* from, unsigned bytes SITE) {
    PTX(asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                     ::"l"(to), "r"(shared_address(from)), "r"(bytes) : "memory"),
        simt::bulk_store(to, from, bytes, site));
}
__device__ inline void bulk_commit() {
    PTX(asm volatile("cp.async.bulk.commit_group;" ::: "memory"), simt::commit_stores());
}
template <int keep>
__device__ inline void bulk_wait() {
    PTX(asm volatile("cp.async.bulk.wait_group %0;" ::"n"(keep) : "memory"),
        simt::wait_for_stores(keep));
}

// Only until shared memory has been read, and may be written again.
template <int keep>
__device__ inline void bulk_wait_read() {
    PTX(asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(keep) : "memory"),
        simt::wait_for_stores(keep));
}

// How many registers each thread of the warpgroup has from now on, a multiple of 8: fewer, for
// others, or more, when others have given theirs. sm_90a.
template <int count>
__device__ inline void give_registers() {
    PTX(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count)), );
}
template <int count>
__device__ inline void take_registers() {
    PTX(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count)), );
}

// Clusters. sm_90.
__device__ inline unsigned cluster_rank() {
    unsigned rank = 0;
    PTX_90(asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)), rank = simt::cluster_rank());
    return rank;
}
__device__ inline void cluster_arrive(ONLY_SITE) {
    PTX_90(asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"),
           simt::cluster_arrive(site));
}
__device__ inline void cluster_wait(ONLY_SITE) {
    PTX_90(asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"),
           simt::cluster_wait(site));
}
// Where the same variable of another block of the cluster is.
template <typename T>
__device__ inline T* in_block(T* pointer, unsigned rank) {
    PTX_90(asm("mapa.u64 %0, %0, %1;" : "+l"(pointer) : "r"(rank)),
           pointer = static_cast<T*>(simt::in_block(pointer, rank)));
    return pointer;
}

// Wait for all threads of the grid, which was launched as cooperative.
__device__ inline void sync_grid(ONLY_SITE) {
    PTX(cooperative_groups::this_grid().sync(), simt::sync_grid(site));
}

// Matrices of 8 x 8 sixteen-bit numbers between shared memory and registers: lane 8 j + r says where
// row r of matrix j begins.
__device__ inline void ldmatrix_x4(uint32_t (&to)[4], const void* row SITE) {
    PTX(asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(shared_address(row)) : "memory"),
        simt::load_matrices(to, 4, false, row, site));
}
__device__ inline void ldmatrix_x4_trans(uint32_t (&to)[4], const void* row SITE) {
    PTX(asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(shared_address(row)) : "memory"),
        simt::load_matrices(to, 4, true, row, site));
}
__device__ inline void ldmatrix_x2(uint32_t (&to)[2], const void* row SITE) {
    PTX(asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(to[0]), "=r"(to[1]) : "r"(shared_address(row)) : "memory"),
        simt::load_matrices(to, 2, false, row, site));
}
// sm_90.
__device__ inline void stmatrix_x4(void* row, const uint32_t (&from)[4] SITE) {
    PTX(asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                     ::"r"(shared_address(row)), "r"(from[0]), "r"(from[1]), "r"(from[2]),
                     "r"(from[3]) : "memory"),
        simt::store_matrices(from, 4, false, row, site));
}

// 2 to the x, to 22 bits.
__device__ inline float exp2(float x) {
    PTX(float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y,
        return std::exp2(x));
}

// d = a b + c: a 16 x 16, b 16 x 8, c and d 16 x 8 in float, each in pieces over the warp.
__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                const float (&c)[4] SITE) {
    PTX(asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                     : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]),
                       "f"(c[1]), "f"(c[2]), "f"(c[3])),
        simt::mma_16x8(simt::Kind::bf16, d, a, b, c, site));
}
__device__ inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                               const float (&c)[4] SITE) {
    PTX(asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                     : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]),
                       "f"(c[1]), "f"(c[2]), "f"(c[3])),
        simt::mma_16x8(simt::Kind::f16, d, a, b, c, site));
}
// The bits of the nearest number whose fraction has 10 bits, away from zero if there are two.
__device__ inline uint32_t round_to_tf32(float x) {
    PTX(uint32_t bits; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x)); return bits,
        const uint32_t bits = __float_as_uint(x);
        return x != x ? bits : (bits + 0x1000) & 0xFFFFE000);
}
// a 16 x 8, b 8 x 8, in float of which 10 bits of the fraction count.
__device__ inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                const float (&c)[4] SITE) {
    PTX(asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                     : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]),
                       "f"(c[1]), "f"(c[2]), "f"(c[3])),
        simt::mma_16x8(simt::Kind::tf32, d, a, b, c, site));
}

}  // namespace ptx
