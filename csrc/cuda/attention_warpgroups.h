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
    __device__ uint64_t descriptor(int offset) const {
        return ptx::matrix_descriptor(data + offset, bytes, 1024, ptx::Swizzle::bytes_128);
    }
    // 16 columns of all rows, or 16 rows of all columns.
    __device__ uint64_t columns(int k) const { return descriptor(bytes_before(k)); }
    __device__ uint64_t lines(int k) const { return descriptor(k * 128); }
    __device__ static int bytes_before(int column) {
        return column / kPanel * bytes + column % kPanel * 2;
    }

    __device__ void load(const CUtensorMap* map, uint64_t* barrier, int width, int row, int head,
                         long batch) const {
        for (int panel = 0; panel < padded(width) / kPanel; ++panel)
            ptx::tma_load(data + panel * bytes, map, barrier, panel * kPanel, row, head, int(batch));
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
    __device__ void wait_until_empty(int n) const {
        if (n >= 2) ptx::mbarrier_wait(empty + n % 2, (n / 2 - 1) % 2);
    }
    __device__ void wait_to_fill(int n, unsigned bytes) const {
        wait_until_empty(n);
        ptx::mbarrier_arrive_expect(full + n % 2, bytes);
    }
    __device__ void wait_to_read(int n) const { ptx::mbarrier_wait(full + n % 2, n / 2 % 2); }
    __device__ void release(int n) const {
        if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(empty + n % 2);
    }
};

// The queries of a block, of one head, and the keys that any of them sees, in tiles.
template <typename T, typename Plan>
struct QueryBlock {
    const Work<T> work;
    const int head, kv_head, last, begin, tiles;

    __device__ explicit QueryBlock(const Attention<T>& p)
        : work(p, false, Plan::rows),
          head(blockIdx.y),
          kv_head(head / int(p.group)),
          last(int(min(work.first + Plan::rows, work.time_q)) - 1),
          begin(int(work.first_key(work.first))),
          tiles(max(0, int(work.end_of_keys(last)) - begin + Plan::keys - 1) / Plan::keys) {}
    __device__ bool exists() const { return work.first < work.time_q; }
    __device__ int query_row(int consumer) const {
        return int(work.q_begin + work.first) + 64 * consumer;
    }
    __device__ int key(int n) const { return begin + n * Plan::keys; }
    __device__ int key_row(int n) const { return int(work.k_begin) + key(n); }
    __device__ bool all_see(int n) const {
        return work.all_see(work.first, last, key(n), key(n) + Plan::keys - 1);
    }
};

// Which of the consumers, and the first of its warp's rows among theirs.
__device__ inline int consumer_of_thread() {
    return threadIdx.x / kGroup - 1;
}
__device__ inline int row_of_warp() {
    return int(threadIdx.x) % kGroup / 32 * 16;
}

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
    for (int k = 0; k < dim; k += 16)
        ptx::wgmma<T>(sums, ptx::descriptor_after(a.columns(0), a.bytes_before(k)), b.columns(k),
                      k > 0);
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

// Products that are seen become scores, by cap and bias; and of the gradient dP of P what makes of
// dS = P (dP - D) softcap' that same P (dP - D): D + (dP - D) softcap'.
template <typename T, typename SeenOf, typename BiasOf, typename DeltaOf, int registers,
          typename... Gradient>
__device__ void modify(const Modified<T>& modified, SeenOf seen_of, BiasOf bias_of, DeltaOf delta_of,
                       float (&scores)[registers], Gradient&... dscores) {
    for_each(
        [&](int row) {
            return [&, row, seen = seen_of(row), bias = bias_of(row)](int column, float& s,
                                                                      auto&... d) {
                if (!seen.has(column)) return;
                float slope;
                s = modified(s, slope);
                if (modified.bias.data) s += bias.data[column * bias.step];
                ((d = delta_of(row, column) + (d - delta_of(row, column)) * slope), ...);
            };
        },
        by_pieces(scores), by_pieces(dscores)...);
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
