// What kernels of matrix products share whose blocks stay for many tiles, sm_90a: in which order these
// are made, how results leave by the tensor memory accelerator, and what it is told.

#pragma once

#include "batch.h"
#include "warpgroups.h"

namespace minitorch {

// In which order tiles are made: in bands of `band` rows of tiles, each band column by column. The
// blocks of a cluster take neighbours, which are above each other.
struct Order {
    int rows, columns, band, products;

    template <typename P, typename Body>
    __device__ void each_tile(Body body) const {
        const long tiles = long(products) * rows * columns;
        for (long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
            const int plane = int(tile / (rows * columns)), rest = int(tile % (rows * columns));
            const int first = rest / (band * columns) * band, height = min(band, rows - first);
            const int within = rest - first * columns;
            body(plane, (first + within % height) * P::rows, within / height * P::width);
        }
    }
};

// Where 64 rows of a tile begin, and what shared memory there is to write them by.
struct Place {
    int plane, row, column;
    Square square;
};

template <typename P, typename OfP>
__device__ void produce(const OfP& maps, const Order& order, int k, Ring<P> ring) {
    order.each_tile<P>([&](int plane, int row, int column) {
        fill(ring, maps, row, column, maps.many_a ? plane : 0, maps.many_b ? plane : 0, 0, k);
    });
}

// Alpha times the sums, plus a bias perhaps, leaves by 64 columns, through two panels in turns: one is
// filled while the other is read by the accelerator. A warp's 8 x 8 numbers go there by stmatrix. A tile
// of 64 columns has one panel, so that of the last tile has to have been read.
template <int columns, typename T, typename O>
__device__ void store(const Product<T, O>& p, const Sums<columns>& sums, const CUtensorMap* map,
                      const Place& at) {
    const int lane = threadIdx.x % 32, line = threadIdx.x % kGroup / 32 * 16 + lane % 16;
    const bool first = threadIdx.x % kGroup == 0;
#pragma unroll
    for (int i = 0; i < columns / 64; ++i) {
        char* const panel = reinterpret_cast<char*>(at.square.data) + i % 2 * kPanelBytes;
        if (first) ptx::bulk_wait_read<columns == 64 ? 0 : 1>();
        at.square.meet();
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            uint32_t pairs[4];
#pragma unroll
            for (int l = 0; l < 4; ++l) {
                const int e = 32 * i + 4 * j + 2 * l;
                const int column = at.column + e / 4 * 8 + sums.column();
                Vector<O, 2> pair;
                pair[0] = O(p.alpha * sums.x[e] + p.bias_of(column));
                pair[1] = O(p.alpha * sums.x[e + 1] + p.bias_of(column + 1));
                pairs[l] = pair.whole;
            }
            ptx::stmatrix_x4(panel + line * 128 + ((j + lane / 16) ^ line % 8) * 16, pairs);
        }
        ptx::fence_proxy_async();
        at.square.meet();
        if (first) {
            ptx::tma_store(map, panel, at.column + 64 * i, at.row, at.plane);
            ptx::bulk_commit();
        }
    }
}

// A tile's sums leave by the accelerator where it can write them; otherwise the threads do.
template <int columns, typename T, typename O>
__device__ void write_tile(const Batch<T, O>& batch, const Sums<columns>& sums, const Maps& maps,
                           const Place& at) {
    if constexpr (sizeof(O) == 2)
        if (maps.stores) return store(batch.first, sums, &maps.out, at);
    sums.write(batch[at.plane], at.row, at.column, at.square);
}

// All threads of the cluster.
template <int cluster>
__device__ void meet() {
    if constexpr (cluster == 1) {
        __syncthreads();
    } else {
        ptx::cluster_arrive();
        ptx::cluster_wait();
    }
}

// The first warpgroup copies, by one of its threads; each of the others multiplies 64 rows. They meet at
// the barriers of a ring alone, and so run as far ahead of each other as it is long. make(sums, ring,
// consumer, at) makes 64 rows of a tile, which are at that place.
template <typename P, typename OfP, typename Make>
__device__ void make_tiles(const OfP& maps, const Order& order, int k, Make make) {
    SHARED_DYNAMIC(char, memory);
    SHARED(uint64_t, full, [P::stages]);
    SHARED(uint64_t, empty, [P::stages]);
    Ring<P> ring{memory, full, empty};
    if (threadIdx.x == 0) ring.init();
    meet<P::cluster>();
    if (threadIdx.x < kGroup) {
        ptx::give_registers<40>();
        if (threadIdx.x == 0) produce<P>(maps, order, k, ring);
    } else {
        ptx::take_registers<232>();
        const int consumer = threadIdx.x / kGroup - 1;
        char* const own = memory + P::stages * P::stage_bytes + consumer * Square::bytes;
        const Square square{reinterpret_cast<float*>(own), 1 + consumer};
        Sums<P::columns> sums;
        order.each_tile<P>([&](int plane, int row, int column) {
            make(sums, ring, consumer, Place{plane, row + 64 * consumer, column, square});
        });
        if (maps.stores && threadIdx.x % kGroup == 0) ptx::bulk_wait<0>();
    }
    if constexpr (P::cluster > 1) meet<P::cluster>();  // others' copies and arrivals come here
}

inline long plane_stride(const Array& x) {
    for (int i = x.ndim - 3; i >= 0; --i)
        if (x.shape[i] > 1) return x.strides[i];
    return 0;
}

// Whether leading dimensions could be one.
inline bool is_evenly_spaced(const Array& x) {
    int inner = -1;
    for (int i = x.ndim - 3; i >= 0; --i) {
        if (x.shape[i] == 1) continue;
        if (inner >= 0 && x.strides[i] != x.strides[inner] * x.shape[inner]) return false;
        inner = i;
    }
    return true;
}

// The accelerator can write the product: nothing but a bias is added to it, and its lines begin at
// multiples of 16 bytes.
template <typename T, typename O>
bool takes_stores(const Array& out, const Product<T, O>& p) {
    return sizeof(O) == 2 && p.is_affine() && is_evenly_spaced(out) && out.stride(-1) == 1 &&
           is_aligned<O>(out.data, out.stride(-2), plane_stride(out));
}

template <typename A, typename B, typename T, typename O>
Maps maps_of(const Array* arrays, const Batch<T, O>& batch, bool stores) {
    const Product<T, O>& p = batch.first;
    const long a_stride = plane_stride(arrays[0]), b_stride = plane_stride(arrays[1]);
    Maps maps{};
    maps.many_a = a_stride != 0;
    maps.many_b = b_stride != 0;
    maps.a = A::map(p.a, p.m, p.k, a_stride ? batch.count : 1, a_stride);
    maps.b = B::map(p.b.transposed(), p.n, p.k, b_stride ? batch.count : 1, b_stride);
    maps.stores = stores && takes_stores(arrays[2], p);
    if (maps.stores) {
        const long stride = p.m > 1 ? p.out.row_stride : (p.n + 7) / 8 * 8;
        maps.out = tensor_map(
            p.out.data, {p.n, p.m, batch.count},
            {1, stride, batch.count > 1 ? plane_stride(arrays[2]) : p.m * stride}, {64, 64, 1},
            ptx::Swizzle::bytes_128);
    }
    return maps;
}

inline unsigned multiprocessors() {
    int device = 0, count = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return unsigned(count);
}

// kernel(maps, batch, order, more...). With band 0 each tile has a block of its own; otherwise blocks
// are as many as multiprocessors.
template <typename P, typename O, typename Kernel, typename OfP, typename... More>
void launch_persistent(Kernel kernel, const OfP& maps, const Batch<typename P::T, O>& batch, int band,
                       cudaStream_t stream, const More&... more) {
    constexpr int cluster = P::cluster;
    const Order order{int(ceil_div(ceil_div(batch.first.m, P::rows), cluster) * cluster),
                      int(ceil_div(batch.first.n, P::width)), max(band, 1), int(batch.count)};
    const unsigned tiles = unsigned(long(order.products) * order.rows * order.columns);
    const unsigned blocks = band ? min(tiles, multiprocessors() / cluster * cluster) : tiles;
    launch({.cluster = cluster}, kernel, blocks, P::threads, P::shared_bytes, stream, maps, batch,
           order, more...);
}

}  // namespace minitorch
