// The matrix product, with whatever strides, and what follows it fused into its last write:
//
//     out = f(alpha A B + bias) + residual [+ out]        A (m, k), B (k, n), out (m, n)
//
// Six kernels, a ladder, each with one idea more than the one before:
//
//     naive        a thread for each number of out
//     coalesced    the threads of a warp read and write neighbours in memory
//     shared       a block reads a tile of A and of B once, and shares it
//     registers    a thread makes many numbers of out from what it has read into registers
//     vectorised   16 bytes at a time, from memory and from shared memory, where A is turned for it
//     buffered     the next tile comes while this one is multiplied
//
// The last is the default; it takes float32 and float64, whose tiles are copied as they are. For
// 16-bit numbers, which are widened on the way, it is the one before. All sums are made in the
// order of k by one thread: results do not depend on the schedule, and not on m and n.
//
// Source: Boehm, How to Optimize a CUDA Matmul Kernel for cuBLAS-like Performance, 2022.

#include "batch.h"
#include "ptx.h"
#include "tiles.h"

namespace minitorch {

// 1. A thread for each number of out. Neighbouring threads take neighbouring rows, which is how one
// writes it at first: at each step the 32 threads of a warp want 32 numbers of A that lie a row
// apart, and so 32 separate pieces of memory.
template <typename T, typename O>
__global__ void naive(Batch<T, O> batch) {
    const Product<T, O> p = batch.of_this_block();
    const Corner corner(p.n, blockDim.x, blockDim.y);
    const long row = corner.row + threadIdx.x, column = corner.column + threadIdx.y;
    if (row >= p.m || column >= p.n) return;
    Compute<T> sum = 0;
    for (long i = 0; i < p.k; ++i) sum += Compute<T>(p.a(row, i)) * Compute<T>(p.b(i, column));
    p.write(row, column, sum);
}

// 2. Neighbouring threads take neighbouring columns: a warp reads one number of A, which all its
// threads share, and 32 neighbours of B, which come in one piece. Nothing else is different.
template <typename T, typename O>
__global__ void coalesced(Batch<T, O> batch) {
    const Product<T, O> p = batch.of_this_block();
    const Corner corner(p.n, blockDim.y, blockDim.x);
    const long row = corner.row + threadIdx.y, column = corner.column + threadIdx.x;
    if (row >= p.m || column >= p.n) return;
    Compute<T> sum = 0;
    for (long i = 0; i < p.k; ++i) sum += Compute<T>(p.a(row, i)) * Compute<T>(p.b(i, column));
    p.write(row, column, sum);
}

// 3. A block of 32 x 32 threads brings a tile of A and one of B into shared memory, a number of
// each to a thread, and multiplies them there: each number is read from memory once and used 32
// times.
constexpr int kTile = 32;

template <typename T, typename O>
__global__ void shared(Batch<T, O> batch) {
    using C = Compute<T>;
    SHARED(C, a, [kTile][kTile]);
    SHARED(C, b, [kTile][kTile]);
    const Product<T, O> p = batch.of_this_block();
    const Corner corner(p.n, kTile, kTile);
    const int x = threadIdx.x, y = threadIdx.y;
    const long row = corner.row + y, column = corner.column + x;
    C sum = 0;
    for (long i = 0; i < p.k; i += kTile) {
        a[y][x] = row < p.m && i + x < p.k ? C(p.a(row, i + x)) : C(0);
        b[y][x] = i + y < p.k && column < p.n ? C(p.b(i + y, column)) : C(0);
        __syncthreads();  // the tiles are whole
        for (int j = 0; j < kTile; ++j) sum += a[y][j] * b[j][x];
        __syncthreads();  // and nobody needs them any more
    }
    if (row < p.m && column < p.n) p.write(row, column, sum);
}

// 4. In the kernel above each multiplication needs two numbers from shared memory, which is then
// what it waits for. Here 16 x 16 threads make a tile of 16 micro x 16 micro, each a square of
// micro x micro: 2 micro numbers read serve micro² multiplications, and the sums stay in registers.
template <typename T, typename O, int micro>
__global__ void __launch_bounds__(kThreads) registers(Batch<T, O> batch) {
    using C = Compute<T>;
    constexpr int side = 16 * micro;
    SHARED(C, a, [side][kDepth]);
    SHARED(C, b, [kDepth][side]);
    const Product<T, O> p = batch.of_this_block();
    const Corner corner(p.n, side, side);
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    C sums[micro][micro] = {};
    for (long i = 0; i < p.k; i += kDepth) {
        for (int t = threadIdx.x; t < side * kDepth; t += kThreads) {
            const int r = t / kDepth, d = t % kDepth;
            const bool inside = corner.row + r < p.m && i + d < p.k;
            a[r][d] = inside ? C(p.a(corner.row + r, i + d)) : C(0);
        }
        for (int t = threadIdx.x; t < side * kDepth; t += kThreads) {
            const int d = t / side, c = t % side;
            const bool inside = i + d < p.k && corner.column + c < p.n;
            b[d][c] = inside ? C(p.b(i + d, corner.column + c)) : C(0);
        }
        __syncthreads();
        for (int d = 0; d < kDepth; ++d) {
            C left[micro], right[micro];
#pragma unroll
            for (int j = 0; j < micro; ++j) {
                left[j] = a[y + 16 * j][d];
                right[j] = b[d][x + 16 * j];
            }
#pragma unroll
            for (int j = 0; j < micro; ++j)
#pragma unroll
                for (int l = 0; l < micro; ++l) sums[j][l] += left[j] * right[l];
        }
        __syncthreads();
    }
#pragma unroll
    for (int j = 0; j < micro; ++j)
#pragma unroll
        for (int l = 0; l < micro; ++l) {
            const long row = corner.row + y + 16 * j, column = corner.column + x + 16 * l;
            if (row < p.m && column < p.n) p.write(row, column, sums[j][l]);
        }
}

// 5. 16 bytes at a time: a quarter of the instructions that read, from memory and from shared
// memory (tiles.h). For that the rows of A that a thread multiplies with have to be neighbours in
// shared memory.
template <typename T, typename O, int micro>
__global__ void __launch_bounds__(kThreads) vectorised(Batch<T, O> batch) {
    const Product<T, O> p = batch.of_this_block();
    multiply_tile<micro>(p, Corner(p.n, 16 * micro, 16 * micro));
}

// As load_tile, begun and not waited for. A copy of one number goes wherever it should; one of 16
// bytes keeps its neighbours together, and so is for numbers that lie in memory as in the tile.
template <int side, typename T>
__device__ void fetch_tile(const Matrix<const T>& x, long height, long width, long row, long depth,
                           Tile<T, side>& tile) {
    constexpr int n = Vector<T>::count, per_column = side / n;
    if (x.transposed().template has_vectors<n>()) {
        for (int t = threadIdx.x; t < kDepth * per_column; t += kThreads) {
            const int d = t / per_column, r = t % per_column * n;
            const long rest = depth + d < width ? min(long(n), max(0l, height - row - r)) : 0;
            ptx::cp_async<16>(&tile[d][r], rest ? &x(row + r, depth + d) : x.data,
                              int(rest * sizeof(T)));
        }
    } else {
        const bool along_rows = x.column_stride == 1;
        for (int t = threadIdx.x; t < kDepth * side; t += kThreads) {
            const int d = along_rows ? t % kDepth : t / side,
                      r = along_rows ? t / kDepth : t % side;
            const bool inside = row + r < height && depth + d < width;
            ptx::cp_async<sizeof(T)>(&tile[d][r], inside ? &x(row + r, depth + d) : x.data,
                                     inside ? sizeof(T) : 0);
        }
    }
}

// 6. Two tiles of each: while one is multiplied, the other is on its way from memory, through no
// register (cp.async, sm_80). The wait for memory is gone, and one of the two barriers: the one
// that makes the new tile known to all also says that all are done with the old one.
template <typename T, typename O, int micro>
__global__ void __launch_bounds__(kThreads) buffered(Batch<T, O> batch) {
    constexpr int side = 16 * micro;
    SHARED(__align__(16) T, a, [2][kDepth][side + 4]);
    SHARED(__align__(16) T, b, [2][kDepth][side + 4]);
    const Product<T, O> p = batch.of_this_block();
    const Corner corner(p.n, side, side);
    const auto fetch = [&](long i, int buffer) {
        fetch_tile<side>(p.a, p.m, p.k, corner.row, i, a[buffer]);
        fetch_tile<side>(p.b.transposed(), p.n, p.k, corner.column, i, b[buffer]);
        ptx::cp_async_commit();
    };
    T sums[micro][micro] = {};
    if (p.k > 0) fetch(0, 0);
    int buffer = 0;
    for (long i = 0; i < p.k; i += kDepth, buffer ^= 1) {
        ptx::cp_async_wait<0>();
        __syncthreads();
        if (i + kDepth < p.k) fetch(i + kDepth, buffer ^ 1);
        multiply<T, micro>(a[buffer], b[buffer], sums);
    }
    write_tile(p, corner, sums);
}

enum class Step { naive, coalesced, shared, registers, vectorised, buffered };

template <typename T, typename O>
static void start(Step step, const Batch<T, O>& batch, cudaStream_t stream) {
    // In float64 the sums of a large tile would fill all registers.
    constexpr int most_micro = sizeof(Compute<T>) == 4 ? 8 : 4;
    const bool large = most_micro == 8 && fills_large_tiles(batch);
    const auto run = [&](auto kernel, int height, int width, dim3 threads) {
        launch_tiles(kernel, batch, height, width, threads, 0, stream);
    };
    if constexpr (std::is_same_v<T, O>) {
        switch (step) {
            case Step::naive:
                return run(naive<T, O>, 32, 8, {32, 8});
            case Step::coalesced:
                return run(coalesced<T, O>, 8, 32, {32, 8});
            case Step::shared:
                return run(shared<T, O>, kTile, kTile, {kTile, kTile});
            case Step::registers:
                return run(registers<T, O, most_micro>, 16 * most_micro, 16 * most_micro, kThreads);
            case Step::buffered:
                if constexpr (std::is_same_v<T, Compute<T>>)
                    return large ? run(buffered<T, O, most_micro>, 128, 128, kThreads)
                                 : run(buffered<T, O, 4>, 64, 64, kThreads);
            default:
                break;
        }
    }
    large ? run(vectorised<T, O, most_micro>, 128, 128, kThreads)
          : run(vectorised<T, O, 4>, 64, 64, kThreads);
}

// As batch_of, and the number of a Step. out, bias, residual and before have one dtype: that of a
// and b or, where that is of 16 bits, float32.
DEVICE_KERNEL(matmul) {
    const Step step = Step(int(numbers[3]));
    by_dtype(arrays[0], [&](auto kind) {
        using T = decltype(kind);
        if (arrays[2].dtype == arrays[0].dtype)
            start(step, batch_of<T, T>(arrays, numbers), stream);
        else if constexpr (sizeof(T) == 2)
            start(step, batch_of<T, float>(arrays, numbers), stream);
    });
}

// The sums of the columns of x, of rows begin to end each blockIdx.y: 32 columns to a block, whose
// 8 warps take every eighth row. Which numbers are added in which order follows from the shape
// alone.
template <typename T, typename O>
__global__ void column_sums_kernel(Matrix<const T> x, long rows, long columns, long rows_per_block,
                                   O* out) {
    using C = Compute<T>;
    SHARED(C, partial, [8][32]);
    const long column = blockIdx.x * 32l + threadIdx.x, begin = blockIdx.y * rows_per_block;
    const long end = min(rows, begin + rows_per_block);
    C sum = 0;
    if (column < columns)
        for (long row = begin + threadIdx.y; row < end; row += 8) sum += C(x(row, column));
    partial[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || column >= columns) return;
    for (int i = 1; i < 8; ++i) sum += partial[i][threadIdx.x];
    out[blockIdx.y * columns + column] = O(sum);
}

// x (rows, columns) at any strides; out (columns,); space (pieces, columns) of the compute dtype,
// for the sums of so many pieces of the rows.
DEVICE_KERNEL(column_sums) {
    const Array &x = arrays[0], &out = arrays[1], &space = arrays[2];
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const long rows = x.shape[0], columns = x.shape[1], pieces = space.shape[0];
        const unsigned across = ceil_div(columns, 32);
        launch(column_sums_kernel<T, C>, dim3(across, unsigned(pieces)), dim3(32, 8), 0, stream,
               matrix_of<const T>(x), rows, columns, long(ceil_div(rows, pieces)), space.as<C>());
        launch(column_sums_kernel<C, T>, dim3(across), dim3(32, 8), 0, stream,
               Matrix<const C>{space.as<const C>(), columns, 1}, pieces, columns, pieces,
               out.as<T>());
    });
}

}  // namespace minitorch
