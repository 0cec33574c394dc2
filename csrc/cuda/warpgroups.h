// Products by warpgroups that hand tiles to each other, sm_90a: what the kernels of matrix products
// share.
//
// One warpgroup has tiles copied into a ring of stages, others multiply them, 64 rows each, and write
// their sums. The two meet at barriers in memory alone: `full` says that a stage's tiles have landed,
// `empty` that they have been used.
//
// Source: PTX ISA 8.5, "Asynchronous Warpgroup Level Matrix Instructions"; Thakkar et al., CUTLASS 3,
// 2023.

#pragma once

#include "product.h"
#include "tensor_map.h"
#include "wgmma.h"

namespace minitorch {

constexpr int kGroup = 128;  // threads of a warpgroup
constexpr int kPanelBytes = 64 * 128;

// Steps of k of a tile: 128 bytes.
template <typename T>
constexpr int kDepth = 128 / sizeof(T);

// What the tensor memory accelerator copies.
struct Maps {
    CUtensorMap a, b, out;
    bool many_a, many_b;  // product i of several is in plane i, or all have plane 0
    bool stores;          // out as well
};

// `side` rows of A, or columns of B, and 128 bytes' steps of k, in panels of 64 rows or columns. A
// panel's lines of 128 bytes are as in memory, along k or, of 16 bits, along the side; swizzled.
template <typename T, int side, bool along_k>
struct Operand {
    static_assert(along_k || sizeof(T) == 2);
    static constexpr int panels = side / 64, bytes = panels * kPanelBytes;
    static constexpr bool transposed = !along_k;

    // Blocks of a cluster of `sharing` copy every so manieth panel, to all of them.
    __device__ static void load(char* tile, const CUtensorMap* map, uint64_t* barrier, int row,
                                int k, int plane, int sharing = 1) {
        const int own = sharing > 1 ? int(ptx::cluster_rank()) : 0;
        for (int i = own; i < panels; i += sharing) {
            char* const panel = tile + i * kPanelBytes;
            const int r = row + 64 * i, column = along_k ? k : r, line = along_k ? r : k;
            if (sharing > 1)
                ptx::tma_load_multicast(panel, map, barrier, column, line, plane,
                                        uint16_t((1 << sharing) - 1));
            else
                ptx::tma_load(panel, map, barrier, column, line, plane);
        }
    }
    // From panel `panel` on, 32 bytes' steps from k on.
    __device__ static uint64_t descriptor(const char* tile, int panel, int k) {
        const char* begin = tile + panel * kPanelBytes + (along_k ? k * sizeof(T) : k * 128);
        return ptx::matrix_descriptor(begin, kPanelBytes, 1024, ptx::Swizzle::bytes_128);
    }
    // rows, or columns, and k of a matrix of so many products.
    static CUtensorMap map(const Matrix<const T>& x, long rows, long k, long planes,
                           long plane_stride) {
        const long line = along_k ? x.row_stride : x.column_stride;
        const long width = along_k ? k : rows, height = along_k ? rows : k;
        constexpr long n = 16 / sizeof(T);
        const long stride = height > 1 ? line : (width + n - 1) / n * n;
        return tensor_map(x.data, {width, height, planes},
                          {1, stride, planes > 1 ? plane_stride : height * stride},
                          {along_k ? kDepth<T> : 64, 64, 1}, ptx::Swizzle::bytes_128);
    }
};

// 64 x 64 sums in shared memory, a warpgroup's own. Eight neighbours change places with others, so that
// those of eight rows lie in different banks.
struct Square {
    static constexpr int bytes = 64 * 64 * sizeof(float);
    float* data;
    int barrier;

    __device__ void meet() const { ptx::bar_sync(barrier, kGroup); }
    __device__ float* at(int row, int column) const {
        return data + row * 64 + (column / 8 ^ row % 8) * 8 + column % 8;
    }
    template <typename T, typename O>
    __device__ void write(const Product<T, O>& p, long first_row, long first_column) const {
        const bool vectors = p.out.template has_vectors<4>();
#pragma unroll 1
        for (int t = threadIdx.x % kGroup; t < 64 * 16; t += kGroup) {
            const int row = t / 16, column = t % 16 * 4;
            if (first_row + row >= p.m) return;
            const Vector<float> run(at(row, column));
            p.template write_run<4>(first_row + row, first_column + column, run.x, vectors);
        }
    }
};

// 64 x columns of a product, by a warpgroup; lane l of warp w has of each 64 x 8 of them those of rows
// 16 w + l / 4 and 8 more, columns 2 (l % 4) and the next.
template <int columns>
struct Sums {
    float x[columns / 2];

    __device__ void clear() {
#pragma unroll
        for (float& sum : x) sum = 0;
        ptx::keep_in_registers(x);
    }
    // Begins to add the product of the rows of a panel of A, and B, of a tile's steps of k; the first
    // products of all are not added to what is there, unless that is said.
    template <typename T, typename A, typename B>
    __device__ void add_product(const char* a, int panel, const char* b, bool accumulate = true) {
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < kDepth<T>; k += 32 / int(sizeof(T)))
            ptx::wgmma<T, A::transposed, B::transposed>(x, A::descriptor(a, panel, k),
                                                        B::descriptor(b, 0, k), accumulate || k);
        ptx::wgmma_commit();
    }
    __device__ static int row() { return threadIdx.x % kGroup / 32 * 16 + threadIdx.x % 32 / 4; }
    __device__ static int column() { return threadIdx.x % 4 * 2; }

    // By 64 columns, which lie as a whole in shared memory first: from there rows are written, and the
    // code that finishes a number is there once for all of them.
    template <typename T, typename O>
    __device__ void write(const Product<T, O>& p, long first_row, long first_column,
                          const Square& square) const {
#pragma unroll 1
        for (int i = 0; i < columns / 64; ++i) {
            square.meet();
#pragma unroll
            for (int j = 0; j < columns / 64; ++j)
                if (i == j)
#pragma unroll
                    for (int e = 0; e < 32; e += 2)
                        *reinterpret_cast<float2*>(
                            square.at(row() + e / 2 % 2 * 8, column() + e / 4 * 8)) =
                            make_float2(x[32 * j + e], x[32 * j + e + 1]);
            square.meet();
            square.write(p, first_row, first_column + 64 * i);
        }
    }
};

template <typename T_, bool a_along_k, bool b_along_k, int rows_, int columns_, int stages_,
          int cluster_>
struct Plan {
    using T = T_;
    using A = Operand<T, rows_, a_along_k>;
    using B = Operand<T, columns_, b_along_k>;
    static constexpr int rows = rows_, columns = columns_, stages = stages_, cluster = cluster_;
    static constexpr int width = columns;  // of out
    static constexpr int consumers = rows / 64, threads = (1 + consumers) * kGroup;
    static constexpr int stage_bytes = A::bytes + B::bytes;
    static constexpr int shared_bytes = stages * stage_bytes + consumers * Square::bytes;

    __device__ static void load_b(char* tile, const Maps& maps, uint64_t* barrier, int column, int k,
                                  int plane) {
        B::load(tile, &maps.b, barrier, column, k, plane, cluster);
    }
};

// A ring of stages, of A's and B's tiles each. `full` has one arrival in a phase, and the bytes of the
// copies; `empty` one of each warp that has multiplied, in all blocks whose copies fill it.
template <typename P>
struct Ring {
    char* memory;
    uint64_t *full, *empty;
    int slot = 0;
    unsigned parity = 0;

    __device__ void init() const {
        for (int i = 0; i < P::stages; ++i) {
            ptx::mbarrier_init(&full[i], 1);
            ptx::mbarrier_init(&empty[i], 4 * P::consumers * P::cluster);
        }
        ptx::fence_mbarrier_init();
    }
    __device__ char* a() const { return memory + slot * P::stage_bytes; }
    __device__ char* b() const { return a() + P::A::bytes; }
    __device__ void advance() {
        if (++slot < P::stages) return;
        slot = 0;
        parity ^= 1;
    }
    // Of a warp, all lanes call it.
    __device__ void release(int which) const {
        const unsigned lane = threadIdx.x % 32;
        if constexpr (P::cluster == 1) {
            if (lane == 0) ptx::mbarrier_arrive(&empty[which]);
        } else {
            if (lane < P::cluster) ptx::mbarrier_arrive_at(&empty[which], lane);
        }
    }
};

// One thread has the tiles of a product copied, from step `begin` of k to `end`, each as soon as its
// stage is empty; plane_a and plane_b say of which of several products.
template <typename P, typename OfP>
__device__ void fill(Ring<P>& ring, const OfP& maps, int row, int column, int plane_a, int plane_b,
                     int begin, int end) {
    for (int k = begin; k < end; k += kDepth<typename P::T>, ring.advance()) {
        uint64_t* const full = &ring.full[ring.slot];
        ptx::mbarrier_wait(&ring.empty[ring.slot], ring.parity ^ 1);
        ptx::mbarrier_arrive_expect(full, P::stage_bytes);
        P::A::load(ring.a(), &maps.a, full, row, k, plane_a);
        P::load_b(ring.b(), maps, full, column, k, plane_b);
    }
}

// A warpgroup's 64 rows of a product of `steps` steps of k. The products of a stage begin while those
// of the one before it go on; then that one is released. prepare(stage, rest) is done to a stage's
// tiles first, `rest` steps before the end.
template <typename P, typename Prepare>
__device__ void accumulate(Sums<P::columns>& sums, int steps, int consumer, Ring<P>& ring,
                           Prepare prepare) {
    sums.clear();
    int before = -1;
    for (int k = 0; k < steps; k += kDepth<typename P::T>, ring.advance()) {
        ptx::mbarrier_wait(&ring.full[ring.slot], ring.parity);
        prepare(ring.a(), steps - k);
        sums.template add_product<typename P::T, typename P::A, typename P::B>(ring.a(), consumer,
                                                                               ring.b());
        ptx::wgmma_wait<1>(sums.x);
        if (before >= 0) ring.release(before);
        before = ring.slot;
    }
    ptx::wgmma_wait<0>(sums.x);
    if (before >= 0) ring.release(before);
}

}  // namespace minitorch
