// The matrix product of matmul.cu on tensor cores: for bfloat16 and float16, added up in float32,
// and for float32 with operands rounded to TF32. sm_80 and later.
//
// An instruction of a warp multiplies 16 x 16 numbers of A by 16 x 8 of B (in TF32 16 x 8 by 8 x 8),
// which its lanes hold in pieces, fragments (ptx.h). What is left to do is to keep it fed. The ladder
// of matmul.cu goes on:
//
//     tensor       tiles in shared memory, as there; from them the warps' fragments, by ldmatrix
//     swizzled     16-byte pieces change places in the tiles, so that none wait for the same banks
//     staged       three pairs of tiles: two are on their way while one is multiplied
//
// A block of eight warps makes 128 x 128 numbers, each warp 64 x 32 of them; or, where those are too
// few, one of four warps 64 x 64. A pair of tiles is 128 bytes deep, 64 or 32 steps of k. Whichever way
// the operands lie in memory, tiles are copied as they are, and the fragments of a transposed one are
// turned on their way into registers. Lines that begin anywhere (a vocabulary of 50257) are read number
// by number, through registers. Sums are made in the order of k by one warp.
//
// The gated product, silu(a b) (a up), is the last step with a tile of B that is half of b's columns and
// half of up's: both products of a number of out are sums of one block, which writes only what is made
// of them.
//
// Registers of a thread: 119 to 176 on sm_80, 120 to 184 on sm_90a; of the gated product 93 to 166, and 93
// to 170. No spills.
//
// Source: PTX ISA 8.5, "Matrix fragments for mma.m16n8k16"; Thakkar et al., CUTLASS 3, 2023.

#include <algorithm>

#include "batch.h"
#include "ptx.h"

namespace minitorch {

namespace {

template <int side_, int warps, int stages_, bool swizzled_>
struct Plan {
    static constexpr int side = side_, threads = 32 * warps, stages = stages_;
    static constexpr int warps_across = warps / 2;
    static constexpr int warp_rows = side / 2, warp_columns = side / warps_across;
    static constexpr bool swizzled = swizzled_;
    static constexpr int tile_bytes = side * 128;
    static constexpr int sums_length = side + 8;  // of a row: four rows begin in different banks
    static constexpr int shared_bytes =
        std::max(2 * stages * tile_bytes, side * sums_length * int(sizeof(float)));
};
using Tensor = Plan<128, 8, 1, false>;
using Swizzled = Plan<128, 8, 1, true>;
using Staged = Plan<128, 8, 3, true>;
using SmallStaged = Plan<64, 4, 3, true>;

// `side` rows of A, or columns of B, and 128 bytes' steps of k, in lines as in memory: along k or
// along the side.
//
// Fragments are read from eight lines at once, 16 bytes of each, and these lie 128 bytes apart or
// more: in the same four banks. Swizzled, piece i of line l lies where piece i ^ l % 8 would, and the
// eight are in all banks. Numbers of 32 bits in lines along the side are read one by one, by each
// quarter of a warp 8 neighbours of a line, two pieces, and for that i ^ 2 (l % 4) is right.
//
// The columns of a paired tile are those of two matrices, half of each, which lie in memory alike: `second`
// is where the other one begins.
template <typename T, typename Plan, bool along_k, bool paired = false>
struct Tile {
    static constexpr int n = 16 / sizeof(T);  // numbers of a piece
    static constexpr int depth = 128 / sizeof(T);
    static constexpr int lines = along_k ? Plan::side : depth;
    static constexpr int pieces = (along_k ? depth : Plan::side) / n;
    static constexpr bool turned_by_ldmatrix = sizeof(T) == 2;
    T* data;
    const T* second = nullptr;

    __device__ T* piece(int line, int i) const {
        if constexpr (Plan::swizzled)
            i ^= along_k || turned_by_ldmatrix ? line % 8 : 2 * (line % 4);
        return data + (line * pieces + i) * n;
    }
    __device__ T* at(int row, int k) const {
        return along_k ? piece(row, k / n) + k % n : piece(k, row / n) + row % n;
    }

    // Begins to copy rows `row` on, of `height`, and steps `k` on, of `width`, of x; zeros follow. Lines
    // that are not aligned are read at once.
    __device__ void fetch(const Matrix<const T>& x, bool aligned, long height, long width, long row,
                          long k) const {
        constexpr int each = lines * pieces / Plan::threads;
        if (aligned)
#pragma unroll
            for (int j = 0; j < each; ++j) {
                const int t = j * Plan::threads + threadIdx.x;
                const Run run = run_of(x, height, width, row, k, t);
                ptx::cp_async<16>(piece(t / pieces, t % pieces), run.count ? run.data : x.data,
                                  run.count * int(sizeof(T)));
            }
        else
#pragma unroll 1
            for (int t = threadIdx.x; t < lines * pieces; t += Plan::threads)
                run_of(x, height, width, row, k, t).copy(piece(t / pieces, t % pieces));
    }
    // What of x is piece t of the tile.
    struct Run {
        const T* data;
        int count;

        __device__ void copy(T* to) const {
            Vector<T> run;
#pragma unroll
            for (int i = 0; i < n; ++i) run[i] = i < count ? data[i] : T(0.0f);
            run.store(to);
        }
    };
    __device__ Run run_of(const Matrix<const T>& x, long height, long width, long row, long k,
                          int t) const {
        constexpr int half = Plan::side / 2;
        const int line = t / pieces, i = t % pieces, side = along_k ? line : i * n;
        const T* const from = paired && side >= half ? second : x.data;
        const long r = row + (paired ? side % half : side), d = k + (along_k ? i * n : line);
        const long rest = r < height && d < width ? (along_k ? width - d : height - r) : 0;
        return {from + (along_k ? r * x.row_stride + d : d * x.column_stride + r),
                int(min(rest, long(n)))};
    }

    // Four matrices of 8 rows and 16 bytes' steps, at (row, k), (row + 8, k), (row, k + n) and
    // (row + 8, k + n): of each, lane l gets 32 bits of row l / 4, piece l % 4.
    __device__ void load(uint32_t (&to)[4], int row, int k) const {
        const int lane = threadIdx.x % 32;
        if constexpr (along_k)
            ptx::ldmatrix_x4(to, at(row + lane % 16, k + lane / 16 * n));
        else if constexpr (turned_by_ldmatrix)
            ptx::ldmatrix_x4_trans(to, at(row + lane / 8 % 2 * 8, k + lane % 8 + lane / 16 * 8));
        else
#pragma unroll
            for (int j = 0; j < 4; ++j)
                to[j] = __float_as_uint(*at(row + lane / 4 + j % 2 * 8, k + lane % 4 + j / 2 * 4));
        if constexpr (std::is_same_v<T, float>)
#pragma unroll
            for (uint32_t& x : to) x = ptx::round_to_tf32(__uint_as_float(x));
    }
};

template <typename T>
__device__ void multiply(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (std::is_same_v<T, bfloat16>)
        ptx::mma_bf16(sums, a, b, sums);
    else if constexpr (std::is_same_v<T, float16>)
        ptx::mma_f16(sums, a, b, sums);
    else
        ptx::mma_tf32(sums, a, b, sums);
}

// The sums of a warp's part of a block's square: lane l has of each 16 x 8 of them those of rows
// l / 4 and l / 4 + 8, columns 2 (l % 4) and the next.
template <int rows, int columns>
struct Sums {
    static constexpr int down = rows / 16, across = columns / 8;
    float x[down][across][4] = {};

    template <typename A, typename B>
    __device__ void add_product(const A& a, const B& b, int row, int column, int k) {
        uint32_t left[down][4], right[across / 2][4];
#pragma unroll
        for (int i = 0; i < down; ++i) a.load(left[i], row + 16 * i, k);
#pragma unroll
        for (int j = 0; j < across / 2; ++j) b.load(right[j], column + 16 * j, k);
#pragma unroll
        for (int i = 0; i < down; ++i)
#pragma unroll
            for (int j = 0; j < across; ++j) {
                const uint32_t two[2] = {right[j / 2][j % 2], right[j / 2][j % 2 + 2]};
                multiply<std::remove_pointer_t<decltype(a.data)>>(x[i][j], left[i], two);
            }
    }
    // To rows of `length` numbers.
    __device__ void store(float* to, int length) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < down; ++i)
#pragma unroll
            for (int j = 0; j < across; ++j)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float* pair = to + (16 * i + 8 * half + lane / 4) * length + 8 * j + lane % 4 * 2;
                    *reinterpret_cast<float2*>(pair) =
                        make_float2(x[i][j][2 * half], x[i][j][2 * half + 1]);
                }
    }
};

// The warps' sums lie beside each other in shared memory first: from there whole rows are written.
template <typename Plan, typename T, typename O>
__device__ void write_square(const Product<T, O>& p, const Corner& corner, const float* sums) {
    constexpr int per_row = Plan::side / 4;
    const bool vectors = p.out.template has_vectors<4>();
#pragma unroll 1
    for (int t = threadIdx.x; t < Plan::side * per_row; t += Plan::threads) {
        const int row = t / per_row, column = t % per_row * 4;
        if (corner.row + row >= p.m) return;
        const Vector<float> run(sums + row * Plan::sums_length + column);
        p.template write_run<4>(corner.row + row, corner.column + column, run.x, vectors);
    }
}

// Of a paired square the left half is silu's, the right one is multiplied by that. kept: (2, m, n), to
// receive both, or null.
template <typename Plan, typename T>
__device__ void write_gated(const Product<T, T>& p, const Corner& corner, const float* sums, T* kept) {
    constexpr int half = Plan::side / 2, per_row = half / 4;
    Product<T, T> gates = p, ups = p;
    gates.out.data = kept;
    ups.out.data = kept + p.m * p.n;
    const bool vectors = p.out.template has_vectors<4>();
#pragma unroll 1
    for (int t = threadIdx.x; t < Plan::side * per_row; t += Plan::threads) {
        const long row = corner.row + t / per_row, column = corner.column + t % per_row * 4;
        if (row >= p.m) return;
        const float* const from = sums + t / per_row * Plan::sums_length + t % per_row * 4;
        const Vector<float> gate(from), up(from + half);
        if (kept) {
            gates.template write_run<4>(row, column, gate.x, vectors);
            ups.template write_run<4>(row, column, up.x, vectors);
        }
        Vector<float> run;
#pragma unroll
        for (int i = 0; i < 4; ++i) run[i] = activate(Activation::silu, gate[i]) * up[i];
        p.template write_run<4>(row, column, run.x, vectors);
    }
}

// Whether all lines of an operand begin at multiples of 16 bytes.
struct Aligned {
    bool a, b;
};

// The sums of a block's square, in shared memory. paired: of p.b's columns and of those of `second`.
template <typename Plan, bool a_along_k, bool b_along_k, bool paired, typename T, typename O>
__device__ const float* make_square(const Product<T, O>& p, const Corner& corner, Aligned aligned,
                                    const T* second) {
    SHARED_DYNAMIC(char, memory);
    using A = Tile<T, Plan, a_along_k>;
    using B = Tile<T, Plan, b_along_k, paired>;
    const auto place = [&](int tile) {
        return reinterpret_cast<T*>(memory + tile * Plan::tile_bytes);
    };
    const auto a = [&](int step) { return A{place(step % Plan::stages * 2)}; };
    const auto b = [&](int step) { return B{place(step % Plan::stages * 2 + 1), second}; };
    const int steps = int((p.k + A::depth - 1) / A::depth);
    const auto fetch = [&](int step) {
        if (step < steps) {
            const long k = long(step) * A::depth;
            a(step).fetch(p.a, aligned.a, p.m, p.k, corner.row, k);
            b(step).fetch(p.b.transposed(), aligned.b, p.n, p.k, corner.column, k);
        }
        ptx::cp_async_commit();
    };
    constexpr int ahead = std::max(1, Plan::stages - 1);
    const int warp = threadIdx.x / 32, row = warp / Plan::warps_across * Plan::warp_rows,
              column = warp % Plan::warps_across * Plan::warp_columns;
    Sums<Plan::warp_rows, Plan::warp_columns> sums;
    for (int step = 0; step < ahead; ++step) fetch(step);
    for (int step = 0; step < steps; ++step) {
        ptx::cp_async_wait<ahead - 1>();
        __syncthreads();  // the step's tiles are whole, and all are done with those of the last one
        if (Plan::stages > 1) fetch(step + ahead);
#pragma unroll
        for (int k = 0; k < A::depth; k += 2 * A::n)
            sums.add_product(a(step), b(step), row, column, k);
        if (Plan::stages > 1) continue;
        __syncthreads();
        fetch(step + 1);
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
    float* const square = reinterpret_cast<float*>(memory);
    sums.store(square + row * Plan::sums_length + column, Plan::sums_length);
    __syncthreads();
    return square;
}

template <typename T, typename O, typename Plan, bool a_along_k, bool b_along_k>
__global__ void __launch_bounds__(Plan::threads) tensor(Batch<T, O> batch, Aligned aligned) {
    const Product<T, O> p = batch.of_this_block();
    const Corner corner(p.n, Plan::side, Plan::side);
    write_square<Plan>(
        p, corner, make_square<Plan, a_along_k, b_along_k, false, T, O>(p, corner, aligned, nullptr));
}

template <typename T, typename Plan, bool a_along_k, bool b_along_k>
__global__ void __launch_bounds__(Plan::threads)
    gated(Batch<T, T> batch, Aligned aligned, const T* up, T* kept) {
    const Product<T, T>& p = batch.first;
    const Corner corner(p.n, Plan::side, Plan::side / 2);
    write_gated<Plan>(p, corner, make_square<Plan, a_along_k, b_along_k, true>(p, corner, aligned, up),
                      kept);
}

// layout: whether a and b lie along k, and whether they are aligned. body(aligned, flag of a, of b)
template <typename Body>
void by_layout(const double* layout, Body&& body) {
    const Aligned aligned{layout[2] != 0, layout[3] != 0};
    by_flag(layout[0] != 0, [&](auto a) {
        by_flag(layout[1] != 0, [&](auto b) { body(aligned, a, b); });
    });
}

template <typename Plan, typename T, typename O>
void start(const Batch<T, O>& batch, const double* layout, cudaStream_t stream) {
    by_layout(layout, [&](Aligned aligned, auto a, auto b) {
        launch_tiles(tensor<T, O, Plan, a.value, b.value>, batch, Plan::side, Plan::side,
                     Plan::threads, Plan::shared_bytes, stream, aligned);
    });
}

template <typename Plan, typename T>
void start_gated(const Array* arrays, const Batch<T, T>& batch, const double* layout,
                 cudaStream_t stream) {
    by_layout(layout, [&](Aligned aligned, auto a, auto b) {
        launch_tiles(gated<T, Plan, a.value, b.value>, batch, Plan::side, Plan::side / 2,
                     Plan::threads, Plan::shared_bytes, stream, aligned, arrays[6].as<const T>(),
                     arrays[7].as<T>());
    });
}

enum class Step { tensor, swizzled, staged };

template <typename T, typename O>
void start(const Array* arrays, const double* numbers, cudaStream_t stream) {
    const Batch<T, O> batch = batch_of<T, O>(arrays, numbers);
    const double* layout = numbers + 4;
    if constexpr (std::is_same_v<T, bfloat16> && std::is_same_v<O, bfloat16>) {
        if (Step(int(numbers[3])) == Step::tensor) return start<Tensor>(batch, layout, stream);
        if (Step(int(numbers[3])) == Step::swizzled)
            return start<Swizzled>(batch, layout, stream);
    }
    fills_large_tiles(batch) ? start<Staged>(batch, layout, stream)
                             : start<SmallStaged>(batch, layout, stream);
}

}  // namespace

// As batch_of, the number of a Step, whether a and b lie in memory along k: otherwise a does along m,
// and b along n; and whether lines of a, and of b, begin at multiples of 16 bytes. The first two steps
// are made for bfloat16; out is of a's dtype or float32.
DEVICE_KERNEL(matmul_mma) {
    if (arrays[0].dtype == Dtype::float32) return start<float, float>(arrays, numbers, stream);
    by_half(arrays[0], arrays[2], [&](auto kind, auto result) {
        start<decltype(kind), decltype(result)>(arrays, numbers, stream);
    });
}

// As matmul_mma's last step, of one product, and nothing but it: out (m, n) = silu(a b) (a up), with up
// in memory as b; kept (2, m, n), contiguous, which receives a b and a up, or None. Out is of a's dtype.
DEVICE_KERNEL(linear_swiglu_mma) {
    const auto run = [&](auto kind) {
        using T = decltype(kind);
        const Batch<T, T> batch = batch_of<T, T>(arrays, numbers);
        fills_large_tiles(batch, 64) ? start_gated<Staged>(arrays, batch, numbers + 4, stream)
                                     : start_gated<SmallStaged>(arrays, batch, numbers + 4, stream);
    };
    if (arrays[0].dtype == Dtype::float32) return run(float());
    by_half(arrays[0], run);
}

}  // namespace minitorch
