// The matrix product of matmul.cu on Hopper's tensor cores, sm_90a: for bfloat16 and float16, added up
// in float32.
//
// There four warps multiply at once, 64 x 256 numbers and 16 steps of k with one instruction, which
// reads both operands from shared memory by itself and goes on while the threads do other things. The
// tensor memory accelerator brings tiles there by itself as well. So the threads do next to nothing,
// and the ladder of matmul_mma.cu goes on with who waits for whom:
//
//     copied        one warpgroup: tiles come by the accelerator, and are multiplied; 64 x 64
//     wide          128 x 128: half the bytes for each multiplication
//     specialised   one warpgroup only copies, into a ring of stages, two only multiply
//     larger        128 x 256, with registers handed from the copying warpgroup to the others
//     persistent    as many blocks as multiprocessors: the next tile is copied while one is written
//     clustered     two blocks share the tile of B, of which each copies a half to both
//     stored        results leave through shared memory and the accelerator, while work goes on
//     ordered       tiles made at one time form a square, whose operands stay in the L2 cache
//
// Whichever way the operands lie in memory, tiles are copied as they are: the instruction takes both.
// Sums are made in the order of k.
//
// Registers of a thread: 168, which is the share of each of 384; of `copied` 58. No spills.
//
// Source: PTX ISA 8.5; Thakkar et al., CUTLASS 3, 2023; P. Shankhdhar, Outperforming cuBLAS on H100,
// 2024.

#include "batch.h"
#include "warpgroups.h"

namespace minitorch {

namespace {

// 1 and 2. A block of one warpgroup: a thread has the two tiles copied, all wait for them at a barrier
// in memory, multiply, and wait for the end of that.
template <typename T, typename O, bool a_along_k, bool b_along_k, int rows, int columns>
__global__ void __launch_bounds__(kGroup)
    alone(const __grid_constant__ Maps maps, Batch<T, O> batch) {
    using A = Operand<T, rows, a_along_k>;
    using B = Operand<T, columns, b_along_k>;
    SHARED_DYNAMIC(char, a);
    SHARED(uint64_t, full, [1]);
    char* const b = a + A::bytes;
    const Product<T, O> p = batch.of_this_block();
    const Corner corner(p.n, rows, columns);
    const int plane = int(batch.begin) + blockIdx.z;
    if (threadIdx.x == 0) {
        ptx::mbarrier_init(full, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    Sums<columns> sums[A::panels];
    for (auto& one : sums) one.clear();
    unsigned parity = 0;
    for (int k = 0; k < p.k; k += kDepth, parity ^= 1) {
        if (threadIdx.x == 0) {
            ptx::mbarrier_arrive_expect(full, A::bytes + B::bytes);
            A::load(a, &maps.a, full, int(corner.row), k, maps.many_a ? plane : 0);
            B::load(b, &maps.b, full, int(corner.column), k, maps.many_b ? plane : 0);
        }
        ptx::mbarrier_wait(full, parity);
#pragma unroll
        for (int i = 0; i < A::panels; ++i) sums[i].template add_product<T, A, B>(a, i, b);
#pragma unroll
        for (auto& one : sums) ptx::wgmma_wait<0>(one.x);
        __syncthreads();  // nobody needs the tiles any more
    }
    const Square square{reinterpret_cast<float*>(a), 1};
#pragma unroll
    for (int i = 0; i < A::panels; ++i)
        sums[i].write(p, corner.row + 64 * i, corner.column, square);
}

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
            body(plane, (first + within % height) * P::rows, within / height * P::columns);
        }
    }
};

template <typename P>
__device__ void produce(const Maps& maps, const Order& order, int k, Ring<P> ring) {
    order.each_tile<P>([&](int plane, int row, int column) {
        fill(ring, maps, row, column, maps.many_a ? plane : 0, maps.many_b ? plane : 0, 0, k);
    });
}

// Numbers that only have to be rounded leave by 64 columns, through two panels in turns: one is filled
// while the other is read by the accelerator. A warp's 8 x 8 numbers go there by stmatrix.
template <int columns, typename T, typename O>
__device__ void store(const Product<T, O>& p, const Sums<columns>& sums, const CUtensorMap* map,
                      int plane, int row, int column, const Square& square) {
    const int lane = threadIdx.x % 32, line = threadIdx.x % kGroup / 32 * 16 + lane % 16;
    const bool first = threadIdx.x % kGroup == 0;
#pragma unroll
    for (int i = 0; i < columns / 64; ++i) {
        char* const panel = reinterpret_cast<char*>(square.data) + i % 2 * kPanelBytes;
        if (first) ptx::bulk_wait_read<1>();
        square.meet();
#pragma unroll
        for (int j = 0; j < 8; j += 2) {
            uint32_t pairs[4];
#pragma unroll
            for (int l = 0; l < 4; ++l) {
                const int e = 32 * i + 4 * j + 2 * l;
                Vector<O, 2> pair;
                pair[0] = O(p.alpha * sums.x[e]);
                pair[1] = O(p.alpha * sums.x[e + 1]);
                pairs[l] = pair.whole;
            }
            ptx::stmatrix_x4(panel + line * 128 + ((j + lane / 16) ^ line % 8) * 16, pairs);
        }
        ptx::fence_proxy_async();
        square.meet();
        if (first) {
            ptx::tma_store(map, panel, column + 64 * i, row, plane);
            ptx::bulk_commit();
        }
    }
}

// All of a block's tiles, 64 rows of each.
template <typename P, typename O>
__device__ void consume(const Maps& maps, const Order& order, const Batch<typename P::T, O>& batch,
                        Ring<P> ring) {
    const int consumer = threadIdx.x / kGroup - 1;
    char* const own = ring.memory + P::stages * P::stage_bytes + consumer * Square::bytes;
    const Square square{reinterpret_cast<float*>(own), 1 + consumer};
    Sums<P::columns> sums;
    order.each_tile<P>([&](int plane, int row, int column) {
        accumulate(sums, int(batch.first.k), consumer, ring, [](char*, int) {});
        row += 64 * consumer;
        if constexpr (sizeof(O) == 2)
            if (maps.stores)
                return store(batch.first, sums, &maps.out, plane, row, column, square);
        sums.write(batch[plane], row, column, square);
    });
    if (maps.stores && threadIdx.x % kGroup == 0) ptx::bulk_wait<0>();
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

// 3 to 8. The first warpgroup copies, by one of its threads; each of the others multiplies 64 rows.
// They meet at the barriers of a ring alone, and so run as far ahead of each other as it is long. Which
// of the ladder's ideas are used is a matter of the plan and of what the launch says.
template <typename P, typename O>
__global__ void __launch_bounds__(P::threads, 1)
    pipelined(const __grid_constant__ Maps maps, Batch<typename P::T, O> batch, Order order) {
    SHARED_DYNAMIC(char, memory);
    SHARED(uint64_t, full, [P::stages]);
    SHARED(uint64_t, empty, [P::stages]);
    const Ring<P> ring{memory, full, empty};
    if (threadIdx.x == 0) ring.init();
    meet<P::cluster>();
    if (threadIdx.x < kGroup) {
        ptx::give_registers<40>();
        if (threadIdx.x == 0) produce<P>(maps, order, int(batch.first.k), ring);
    } else {
        ptx::take_registers<232>();
        consume<P>(maps, order, batch, ring);
    }
    if constexpr (P::cluster > 1) meet<P::cluster>();  // others' copies and arrivals come here
}

enum class Step { copied, wide, specialised, larger, persistent, clustered, stored, ordered };

long plane_stride(const Array& x) {
    for (int i = x.ndim - 3; i >= 0; --i)
        if (x.shape[i] > 1) return x.strides[i];
    return 0;
}

// Whether leading dimensions could be one.
bool is_evenly_spaced(const Array& x) {
    int inner = -1;
    for (int i = x.ndim - 3; i >= 0; --i) {
        if (x.shape[i] == 1) continue;
        if (inner >= 0 && x.strides[i] != x.strides[inner] * x.shape[inner]) return false;
        inner = i;
    }
    return true;
}

// The accelerator can write the product: nothing is added to it, and its lines begin at multiples of
// 16 bytes.
template <typename T, typename O>
bool takes_stores(const Array& out, const Product<T, O>& p) {
    return sizeof(O) == 2 && p.is_plain() && is_evenly_spaced(out) && out.stride(-1) == 1 &&
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

template <int rows, int columns, bool a_along_k, bool b_along_k, typename T, typename O>
void run_alone(const Array* arrays, const Batch<T, O>& batch, cudaStream_t stream) {
    using A = Operand<T, rows, a_along_k>;
    using B = Operand<T, columns, b_along_k>;
    const Maps maps = maps_of<A, B>(arrays, batch, false);
    require(batch.count <= 65535, "these steps of the ladder make at most 65535 products");
    launch(alone<T, O, a_along_k, b_along_k, rows, columns>,
           dim3(ceil_div(batch.first.m, rows) * ceil_div(batch.first.n, columns), 1,
                unsigned(batch.count)),
           kGroup, A::bytes + B::bytes, stream, maps, batch);
}

unsigned multiprocessors() {
    int device = 0, count = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return unsigned(count);
}

// With band 0 each tile has a block of its own; otherwise blocks are as many as multiprocessors.
template <typename P, typename O>
void run_pipelined(const Array* arrays, const Batch<typename P::T, O>& batch, int band,
                          bool stores, cudaStream_t stream) {
    constexpr int cluster = P::cluster;
    const Maps maps = maps_of<typename P::A, typename P::B>(arrays, batch, stores);
    const Order order{int(ceil_div(ceil_div(batch.first.m, P::rows), cluster) * cluster),
                      int(ceil_div(batch.first.n, P::columns)), max(band, 1), int(batch.count)};
    const unsigned tiles = unsigned(long(order.products) * order.rows * order.columns);
    const unsigned blocks = band ? min(tiles, multiprocessors() / cluster * cluster) : tiles;
    launch({.cluster = cluster}, pipelined<P, O>, blocks, P::threads, P::shared_bytes, stream, maps,
           batch, order);
}

template <bool a_along_k, bool b_along_k, typename T, typename O>
void start(Step step, const Array* arrays, const Batch<T, O>& batch, cudaStream_t stream) {
    using Small = Plan<T, a_along_k, b_along_k, 128, 128, 6, 1>;
    using Large = Plan<T, a_along_k, b_along_k, 128, 256, 4, 1>;
    using Shared = Plan<T, a_along_k, b_along_k, 128, 256, 4, 2>;
    if constexpr (std::is_same_v<T, bfloat16> && std::is_same_v<O, bfloat16>) {
        switch (step) {
            case Step::copied:
                return run_alone<64, 64, a_along_k, b_along_k>(arrays, batch, stream);
            case Step::wide:
                return run_alone<128, 128, a_along_k, b_along_k>(arrays, batch, stream);
            case Step::specialised:
                return run_pipelined<Small>(arrays, batch, 0, false, stream);
            case Step::larger:
                return run_pipelined<Large>(arrays, batch, 0, false, stream);
            case Step::persistent:
                return run_pipelined<Large>(arrays, batch, 1, false, stream);
            case Step::clustered:
                return run_pipelined<Shared>(arrays, batch, 2, false, stream);
            case Step::stored:
                return run_pipelined<Shared>(arrays, batch, 2, true, stream);
            default:
                break;
        }
    }
    const bool large = long(ceil_div(batch.first.m, 128)) * ceil_div(batch.first.n, 256) *
                           batch.count >= 2l * multiprocessors();
    large ? run_pipelined<Shared>(arrays, batch, 16, true, stream)
          : run_pipelined<Small>(arrays, batch, 16, true, stream);
}

template <typename T, typename O>
void start(const Array* arrays, const double* numbers, cudaStream_t stream) {
    const Batch<T, O> batch = batch_of<T, O>(arrays, numbers);
    by_flag(numbers[4] != 0, [&](auto a) {
        by_flag(numbers[5] != 0, [&](auto b) {
            start<a.value, b.value>(Step(int(numbers[3])), arrays, batch, stream);
        });
    });
}

}  // namespace

// As matmul_mma; the leading dimensions of a and of b are evenly spaced, or broadcast, as one. The
// steps before the last are made for bfloat16.
DEVICE_KERNEL(matmul_wgmma) {
    by_half(arrays[0], arrays[2], [&](auto kind, auto result) {
        start<decltype(kind), decltype(result)>(arrays, numbers, stream);
    });
}

}  // namespace minitorch
