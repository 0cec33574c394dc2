// What attention's kernels for Hopper share, sm_90a: a block of three warpgroups, of which the first has
// tiles copied by the tensor memory accelerator, and the others multiply 64 rows each.

#pragma once

#include "fragments.h"
#include "tensor_map.h"

namespace minitorch {

constexpr int kGroup = 128, kThreads = 3 * kGroup, kPanel = 64;  // columns of a panel: 128 bytes

// How wide the panels of a matrix are together.
constexpr int padded(int width) {
    return (width + kPanel - 1) / kPanel * kPanel;
}

// Panels of 64 columns, `rows` rows of 128 bytes each, swizzled, one after another.
template <typename T, int rows>
struct Panels {
    char* data;

    static constexpr int bytes = rows * 128;
    __device__ uint64_t descriptor(int panel, int offset) const {
        return ptx::matrix_descriptor(data + panel * bytes + offset, bytes, 1024,
                                      ptx::Swizzle::bytes_128);
    }
    // 16 columns of all rows, or 16 rows of all columns.
    __device__ uint64_t columns(int k) const { return descriptor(k / kPanel, k % kPanel * 2); }
    __device__ uint64_t lines(int k) const { return descriptor(0, k * 128); }

    __device__ void load(const CUtensorMap* map, uint64_t* barrier, int width, long row, long head,
                         long batch) const {
        for (int panel = 0; panel < padded(width) / kPanel; ++panel)
            ptx::tma_load(data + panel * bytes, map, barrier, panel * kPanel, int(row), int(head),
                          int(batch));
    }
};

// For each of two places in shared memory: when it has been filled, and when it may be filled
// again.
struct Ring {
    uint64_t *full, *empty;

    // fillers: the copying thread, and others who arrive when they have written.
    __device__ void begin(int fillers = 1) const {
        for (int i = 0; i < 2; ++i) {
            ptx::mbarrier_init(full + i, fillers);
            ptx::mbarrier_init(empty + i, 8);  // the warps that read
        }
    }
    __device__ void wait_until_empty(long n) const {
        if (n >= 2) ptx::mbarrier_wait(empty + n % 2, (n / 2 - 1) % 2);
    }
    __device__ void wait_to_fill(long n, unsigned bytes) const {
        wait_until_empty(n);
        ptx::mbarrier_arrive_expect(full + n % 2, bytes);
    }
    __device__ void wait_to_read(long n) const { ptx::mbarrier_wait(full + n % 2, n / 2 % 2); }
    __device__ void release(long n) const {
        if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(empty + n % 2);
    }
};

// Sums of a warpgroup as those of its warps' mma.sync: a strip each.
template <int registers>
__device__ float (&by_pieces(float (&sums)[registers]))[1][registers / 4][4] {
    return reinterpret_cast<float (&)[1][registers / 4][4]>(sums);
}

// They become the left operand of the next product.
template <typename T, int registers>
__device__ void round_all(float (&sums)[registers], Fragment (&to)[registers / 8]) {
    auto& pieces = by_pieces(sums)[0];
#pragma unroll
    for (int k = 0; k < registers / 8; ++k) rounded<T>(pieces[2 * k], pieces[2 * k + 1], to[k]);
}

// Begins sums = a bᵀ, of 64 rows of a and all rows of b, `dim` wide.
template <int dim, int registers, typename T, int rows>
__device__ void begin_products_of_rows(float (&sums)[registers], const Panels<T, 64>& a,
                                       const Panels<T, rows>& b) {
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < dim; k += 16) ptx::wgmma<T>(sums, a.columns(k), b.columns(k), k > 0);
    ptx::wgmma_commit();
}

// Begins sums += weights b.
template <int registers, typename T, int rows>
__device__ void begin_weighted_rows(float (&sums)[registers], const Fragment (&weights)[rows / 16],
                                    const Panels<T, rows>& b) {
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < rows; k += 16)
        ptx::wgmma<T, true>(sums, weights[k / 16], b.lines(k), true);
    ptx::wgmma_commit();
}

// Boxes of `rows` rows of a head, 64 columns of each. Where there is one of a kind no stride is
// needed.
template <typename T>
CUtensorMap map_of(const Array& x, int rows) {
    const auto stride = [&](int i) { return x.shape[i] > 1 ? x.strides[i] : 8; };
    return tensor_map(x.as<const T>(), {x.shape[3], x.shape[2], x.shape[1], x.shape[0]},
                      {1, stride(2), stride(1), stride(0)}, {kPanel, rows, 1, 1},
                      ptx::Swizzle::bytes_128);
}

}  // namespace minitorch
