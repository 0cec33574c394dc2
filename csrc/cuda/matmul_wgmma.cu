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
// The gated product, silu(a b) (a up), is the last step with a tile of B that is half of b's columns and
// half of up's: a thread holds both products of a number of out, and writes what is made of them.
//
// Registers of a thread: 168, which is the share of each of 384; of `copied` 58. No spills.
//
// Source: PTX ISA 8.5; Thakkar et al., CUTLASS 3, 2023; P. Shankhdhar, Outperforming cuBLAS on H100,
// 2024.

#include "persistent.h"

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
    for (int k = 0; k < p.k; k += kDepth<T>, parity ^= 1) {
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

// 3 to 8. Which of the ladder's ideas are used is a matter of the plan and of what the launch says.
template <typename P, typename O>
__global__ void __launch_bounds__(P::threads, 1)
    pipelined(const __grid_constant__ Maps maps, Batch<typename P::T, O> batch, Order order) {
    const int k = int(batch.first.k);
    make_tiles<P>(maps, order, k, [&](auto& sums, auto& ring, int consumer, const Place& at) {
        accumulate(sums, k, consumer, ring, [](char*, int) {});
        write_tile(batch, sums, maps, at);
    });
}

template <typename P, typename O>
void run_pipelined(const Array* arrays, const Batch<typename P::T, O>& batch, int band, bool stores,
                   cudaStream_t stream) {
    const Maps maps = maps_of<typename P::A, typename P::B>(arrays, batch, stores);
    launch_persistent<P>(pipelined<P, O>, maps, batch, band, stream);
}

// kept: both products, as planes.
struct GatedMaps : Maps {
    CUtensorMap up, kept;
};

template <typename T, bool a_along_k, bool b_along_k, int rows, int columns, int stages, int cluster>
struct GatedPlan : Plan<T, a_along_k, b_along_k, rows, columns, stages, cluster> {
    static constexpr int width = columns / 2;
    using Half = Operand<T, width, b_along_k>;

    __device__ static void load_b(char* tile, const GatedMaps& maps, uint64_t* barrier, int column,
                                  int k, int plane) {
        Half::load(tile, &maps.b, barrier, column, k, plane, cluster);
        Half::load(tile + Half::bytes, &maps.up, barrier, column, k, plane, cluster);
    }
};

template <typename P>
__global__ void __launch_bounds__(P::threads, 1)
    gated(const __grid_constant__ GatedMaps maps, Batch<typename P::T, typename P::T> batch,
          Order order, typename P::T* kept) {
    using T = typename P::T;
    const Product<T, T>& p = batch.first;
    const int k = int(p.k);
    make_tiles<P>(maps, order, k, [&](auto& sums, auto& ring, int consumer, const Place& at) {
        accumulate(sums, k, consumer, ring, [](char*, int) {});
        Sums<P::width> halves[2];
#pragma unroll
        for (int e = 0; e < P::width; ++e) halves[e / (P::width / 2)].x[e % (P::width / 2)] = sums.x[e];
        if (kept)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const Place in_plane{i, at.row, at.column, at.square};
                Product<T, T> to = p;
                to.out.data = kept + i * p.m * p.n;
                if (maps.stores)
                    store(to, halves[i], &maps.kept, in_plane);
                else
                    halves[i].write(to, at.row, at.column, at.square);
            }
#pragma unroll
        for (int e = 0; e < P::width / 2; ++e)
            halves[0].x[e] = activate(Activation::silu, halves[0].x[e]) * halves[1].x[e];
        write_tile(batch, halves[0], maps, at);
    });
}

template <typename P>
void run_gated(const Array* arrays, const Batch<typename P::T, typename P::T>& batch,
               cudaStream_t stream) {
    using T = typename P::T;
    const Array &up = arrays[6], &kept = arrays[7];
    const long m = batch.first.m, n = batch.first.n;
    GatedMaps maps{maps_of<typename P::A, typename P::B>(arrays, batch, true), {}, {}};
    maps.up = P::B::map(matrix_of<const T>(up).transposed(), n, batch.first.k, 1, 0);
    if (kept && maps.stores)
        maps.kept = tensor_map(kept.as<T>(), {n, m, 2l}, {1l, n, m * n}, {64, 64, 1},
                               ptx::Swizzle::bytes_128);
    launch_persistent<P>(gated<P>, maps, batch, 16, stream, kept.as<T>());
}

// Whether there are two large tiles, 128 x width of out, for each multiprocessor.
template <typename T, typename O>
bool fills_twice(const Batch<T, O>& batch, int width) {
    const long tiles = long(ceil_div(batch.first.m, 128)) * ceil_div(batch.first.n, width);
    return tiles * batch.count >= 2l * multiprocessors();
}

enum class Step { copied, wide, specialised, larger, persistent, clustered, stored, ordered };

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
    fills_twice(batch, 256) ? run_pipelined<Shared>(arrays, batch, 16, true, stream)
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

// As linear_swiglu_mma, of 16 bits.
DEVICE_KERNEL(linear_swiglu_wgmma) {
    by_half(arrays[0], [&](auto kind) {
        using T = decltype(kind);
        const Batch<T, T> batch = batch_of<T, T>(arrays, numbers);
        by_flag(numbers[4] != 0, [&](auto a) {
            by_flag(numbers[5] != 0, [&](auto b) {
                using Small = GatedPlan<T, a.value, b.value, 128, 128, 6, 1>;
                using Large = GatedPlan<T, a.value, b.value, 128, 256, 4, 2>;
                fills_twice(batch, Large::width) ? run_gated<Large>(arrays, batch, stream)
                                                 : run_gated<Small>(arrays, batch, stream);
            });
        });
    });
}

}  // namespace minitorch
