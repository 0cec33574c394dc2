// Collectives between R ranks: all-reduce, reduce-scatter, all-gather, broadcast.
//
// A rank is a grid: on a GPU of its own, on a stream of its own, or in the emulator beside the
// others. It has a space in memory that all ranks reach: flags, and for each of its blocks a buffer
// of two halves. Blocks of the same number, one of each rank, move in steps. In step k each
//
//     writes into half k % 2 of its own buffer what the others are to read,
//     stores k into its flag at each of them, and waits until theirs are k at least (meet),
//     reads their halves k % 2.
//
// It writes into that half again in step k + 2: then all have stored k + 1, and so have read what
// they wanted in step k. One meeting a step is enough, a flag is never reset, and since the number
// of the step is kept in the space, a call goes on where the last one ended. For the same reason a
// block's buffer is where it is in every call, however many blocks there are.
//
//     one-shot   1 step: everybody reads everything, N (R - 1) numbers
//     two-shot   2 steps: rank s adds up share s of all; everybody reads the R sums
//     ring       2 (R - 1) steps: sums go round, to the right neighbour, then the results
//
// The last two read 2 N (R - 1) / R, which is the least there can be. In one-shot, two-shot and
// reduce-scatter every sum is ((x0 + x1) + x2) + ..., in the ring that of piece c begins with rank
// c; each is made once, or everywhere in the same order, so that all ranks have the same bits. Sums
// of half precision are float until they are whole.
//
// Source: Thakur et al. 2005, "Optimization of collective communication operations in MPICH";
// Patarasuk and Yuan 2009 (the ring); one-shot and two-shot as in vLLM's custom_all_reduce.cuh.

#include <algorithm>

#include "ptx.h"
#include "rows.h"
#include "streams.h"

namespace minitorch {

constexpr int kMostRanks = 8, kMostBlocks = 32;
constexpr int kResidentBlocks = 96;  // of all ranks on one device, which must run at once

// Of one block: where those of its number on the other ranks are, and its last step.
struct alignas(64) Flags {
    uint32_t from[kMostRanks];
    uint32_t step;
};

// Where the ranks' spaces are, in the eyes of one of them.
struct Spaces {
    char* of[kMostRanks];
    long half_bytes;
    int ranks, rank;
};

// The steps of a block, from the one after the last that its number has made.
class Steps {
public:
    __device__ explicit Steps(const Spaces& spaces)
        : spaces_(spaces), number_(flags(spaces.rank).step + 1) {}

    // Where the block of this rank writes in this step, or in the next one (ahead = 1).
    template <typename T>
    __device__ T* half(int rank, int ahead = 0) const {
        const long place = 2 * blockIdx.x + (number_ + ahead) % 2;
        return reinterpret_cast<T*>(spaces_.of[rank] + kMostBlocks * sizeof(Flags) +
                                    place * spaces_.half_bytes);
    }
    __device__ void meet() { tell_and_wait(true); }
    // Neighbours alone: where nobody else has read in the step before.
    __device__ void meet_neighbours() { tell_and_wait(false); }
    __device__ void next() { ++number_; }

private:
    __device__ Flags& flags(int rank) const {
        return reinterpret_cast<Flags*>(spaces_.of[rank])[blockIdx.x];
    }
    __device__ void tell_and_wait(bool all) {
        const int ranks = spaces_.ranks, other = threadIdx.x;
        const int ahead = (other - spaces_.rank + ranks) % ranks;
        __syncthreads();
        if (threadIdx.x == 0) flags(spaces_.rank).step = number_;
        if (other < ranks && (all || ahead == 1 || ahead == ranks - 1)) {
            ptx::store_release(&flags(other).from[spaces_.rank], number_);
            const uint32_t* theirs = &flags(spaces_.rank).from[other];
            while (int32_t(ptx::load_acquire(theirs) - number_) < 0) {
            }
        }
        __syncthreads();
    }

    const Spaces& spaces_;
    uint32_t number_;
};

struct Range {
    long begin, end;
};

// Part i of `count` numbers in `parts`, which begins at a multiple of 16 bytes and may be empty.
// All ranks must cut in the same places, also those whose arrays do not allow accesses of 16 bytes.
template <typename T>
__device__ Range part_of(long count, long parts, long i) {
    constexpr long n = 16 / sizeof(T);
    const long each = (count + parts * n - 1) / (parts * n) * n;
    return {min(i * each, count), min((i + 1) * each, count)};
}

// What is left of n numbers at the end of an array; zeros beyond it.
template <int n, typename T>
__device__ Few<T, n> load_left(const T* from, long left) {
    if (left >= n) return load<n>(from);
    Few<T, n> few{};
    for (int j = 0; j < n; ++j)
        if (j < left) few[j] = from[j];
    return few;
}
template <typename T, int n>
__device__ void store_left(T* to, const Few<T, n>& few, long left) {
    if (left >= n) return store(to, few);
    for (int j = 0; j < n; ++j)
        if (j < left) to[j] = few[j];
}

template <typename T, int n>
__device__ Few<Compute<T>, n> widened(const Few<T, n>& x) {
    Few<Compute<T>, n> wide;
    for (int j = 0; j < n; ++j) wide[j] = Compute<T>(x[j]);
    return wide;
}
// A sum, or the mean of `divisor` ranks, rounded once.
template <typename T, int n>
__device__ Few<T, n> rounded(const Few<Compute<T>, n>& sum, Compute<T> divisor) {
    Few<T, n> x;
    for (int j = 0; j < n; ++j) x[j] = T(divisor == 1 ? sum[j] : sum[j] / divisor);
    return x;
}

// The sum of what all ranks have at `at` of their halves. All reads are under way before the first
// number is added.
template <typename T, int n>
__device__ Few<T, n> sum_of_ranks(const Steps& steps, int ranks, long at, Compute<T> divisor) {
    Few<T, n> parts[kMostRanks];
#pragma unroll
    for (int q = 0; q < kMostRanks; ++q)
        if (q < ranks) parts[q] = load<n>(steps.half<T>(q) + at);
    Few<Compute<T>, n> sum = widened(parts[0]);
#pragma unroll
    for (int q = 1; q < kMostRanks; ++q)
        if (q < ranks)
            for (int j = 0; j < n; ++j) sum[j] += Compute<T>(parts[q][j]);
    return rounded<T>(sum, divisor);
}

// Numbers `begin` to `end` of an array into a half.
template <int n, typename T>
__device__ void put(T* half, const T* from, long begin, long end) {
    for (long i = begin + threadIdx.x * n; i < end; i += blockDim.x * n)
        store(half + i - begin, load_left<n>(from + i, end - i));
}
// ... and from a half, where number `begin` is the first.
template <int n, typename T>
__device__ void take(const T* half, T* to, long begin, long end) {
    for (long i = begin + threadIdx.x * n; i < end; i += blockDim.x * n)
        store_left(to + i, load<n>(half + i - begin), end - i);
}

// `in` and `out` may be the same, here and below: a round writes only what it has read.
template <typename T, int n>
__global__ void one_shot_kernel(const __grid_constant__ Spaces spaces, const T* in, T* out,
                                long count, Compute<T> divisor) {
    Steps steps(spaces);
    const Range part = part_of<T>(count, gridDim.x, blockIdx.x);
    const long most = spaces.half_bytes / long(sizeof(T));
    for (long begin = part.begin; begin < part.end; begin += most) {
        const long end = min(begin + most, part.end);
        put<n>(steps.half<T>(spaces.rank), in, begin, end);
        steps.meet();
        for (long i = begin + threadIdx.x * n; i < end; i += blockDim.x * n)
            store_left(out + i, sum_of_ranks<T, n>(steps, spaces.ranks, i - begin, divisor),
                       end - i);
        steps.next();
    }
}

template <typename T, int n>
__global__ void two_shot_kernel(const __grid_constant__ Spaces spaces, const T* in, T* out,
                                long count, Compute<T> divisor) {
    Steps steps(spaces);
    const int ranks = spaces.ranks, rank = spaces.rank;
    const Range part = part_of<T>(count, gridDim.x, blockIdx.x);
    const long most = spaces.half_bytes / long(sizeof(T));
    for (long begin = part.begin; begin < part.end; begin += most) {
        const long size = min(most, part.end - begin);
        put<n>(steps.half<T>(rank), in, begin, begin + size);
        steps.meet();
        const Range mine = part_of<T>(size, ranks, rank);
        T* const sums = steps.half<T>(rank, 1);
        for (long i = mine.begin + threadIdx.x * n; i < mine.end; i += blockDim.x * n)
            store(sums + i, sum_of_ranks<T, n>(steps, ranks, i, divisor));
        steps.next();
        steps.meet();
        for (int turn = 0; turn < ranks; ++turn) {
            const int q = (rank + turn) % ranks;  // not all at once from the same one
            const Range share = part_of<T>(size, ranks, q);
            take<n>(steps.half<T>(q) + share.begin, out, begin + share.begin, begin + share.end);
        }
        steps.next();
    }
}

// A round is R pieces, each of which fits into a half. Rank r begins with piece r, adds its own to
// what it reads from the left, and in step R has piece r + 1 whole.
template <typename T, int n>
__global__ void ring_kernel(const __grid_constant__ Spaces spaces, const T* in, T* out, long count,
                            Compute<T> divisor) {
    using C = Compute<T>;
    Steps steps(spaces);
    const int ranks = spaces.ranks, rank = spaces.rank, left = (rank + ranks - 1) % ranks;
    const Range part = part_of<T>(count, gridDim.x, blockIdx.x);
    const long most = spaces.half_bytes / long(sizeof(C)) * ranks;
    bool first = true;  // the step before was another kernel's, of which all may have read
    for (long begin = part.begin; begin < part.end; begin += most) {
        const long size = min(most, part.end - begin);
        const auto piece = [&](int i) {
            const Range inside = part_of<T>(size, ranks, (i + 2 * ranks) % ranks);
            return Range{begin + inside.begin, begin + inside.end};
        };
        const auto meet = [&] {
            if (first)
                steps.meet();
            else
                steps.meet_neighbours();
            first = false;
            steps.next();
        };
        // What is read was shown in the last meeting; the half of that step is the next one's.
        for (int s = 0; s < ranks; ++s) {
            const Range p = piece(rank - s);
            const C* const from = steps.half<C>(left, 1);
            for (long i = p.begin + threadIdx.x * n; i < p.end; i += blockDim.x * n) {
                Few<C, n> sum = widened(load_left<n>(in + i, p.end - i));
                if (s > 0) {
                    const Few<C, n> other = load<n>(from + i - p.begin);
                    for (int j = 0; j < n; ++j) sum[j] += other[j];
                }
                if (s < ranks - 1) {
                    store(steps.half<C>(rank) + i - p.begin, sum);
                } else {
                    const Few<T, n> whole = rounded<T>(sum, divisor);
                    store(steps.half<T>(rank) + i - p.begin, whole);
                    store_left(out + i, whole, p.end - i);
                }
            }
            meet();
        }
        for (int s = 0; s < ranks - 1; ++s) {
            const Range p = piece(rank - s);
            const T* const from = steps.half<T>(left, 1);
            for (long i = p.begin + threadIdx.x * n; i < p.end; i += blockDim.x * n) {
                const Few<T, n> whole = load<n>(from + i - p.begin);
                if (s < ranks - 2) store(steps.half<T>(rank) + i - p.begin, whole);
                store_left(out + i, whole, p.end - i);
            }
            if (s < ranks - 2) meet();
        }
    }
}

// out: the sum of share `rank` of the R shares, `count` numbers each, of every rank's input.
template <typename T, int n>
__global__ void reduce_scatter_kernel(const __grid_constant__ Spaces spaces, const T* in, T* out,
                                      long count, Compute<T> divisor) {
    Steps steps(spaces);
    const int ranks = spaces.ranks, rank = spaces.rank;
    const Range part = part_of<T>(count, gridDim.x, blockIdx.x);
    const long most = spaces.half_bytes / ranks / 16 * 16 / long(sizeof(T));
    for (long begin = part.begin; begin < part.end; begin += most) {
        const long end = min(begin + most, part.end);
        for (int q = 0; q < ranks; ++q)
            put<n>(steps.half<T>(rank) + q * most, in + q * count, begin, end);
        steps.meet();
        for (long i = begin + threadIdx.x * n; i < end; i += blockDim.x * n)
            store_left(out + i, sum_of_ranks<T, n>(steps, ranks, rank * most + i - begin, divisor),
                       end - i);
        steps.next();
    }
}

// out: the R inputs, `count` units each, one after the other. Units are pieces of whatever dtype.
template <typename Unit>
__global__ void all_gather_kernel(const __grid_constant__ Spaces spaces, const Unit* in, Unit* out,
                                  long count) {
    Steps steps(spaces);
    const Range part = part_of<Unit>(count, gridDim.x, blockIdx.x);
    const long most = spaces.half_bytes / long(sizeof(Unit));
    for (long begin = part.begin; begin < part.end; begin += most) {
        const long end = min(begin + most, part.end);
        put<1>(steps.half<Unit>(spaces.rank), in, begin, end);
        steps.meet();
        for (int turn = 0; turn < spaces.ranks; ++turn) {
            const int q = (spaces.rank + turn) % spaces.ranks;
            take<1>(steps.half<Unit>(q), out + q * count, begin, end);
        }
        steps.next();
    }
}

// out: what rank `source` has as `in`.
template <typename Unit>
__global__ void broadcast_kernel(const __grid_constant__ Spaces spaces, const Unit* in, Unit* out,
                                 long count, int source) {
    Steps steps(spaces);
    const Range part = part_of<Unit>(count, gridDim.x, blockIdx.x);
    const long most = spaces.half_bytes / long(sizeof(Unit));
    for (long begin = part.begin; begin < part.end; begin += most) {
        const long end = min(begin + most, part.end);
        if (spaces.rank == source) put<1>(steps.half<Unit>(source), in, begin, end);
        steps.meet();
        if (spaces.rank != source || in != out) take<1>(steps.half<Unit>(source), out, begin, end);
        steps.next();
    }
}

// One call: the spaces of all ranks, then the inputs and the outputs of those that are launched
// here. Numbers: how many ranks there are, which is the first of those, blocks of each or 0 for as
// many as the size asks for, then the kernel's own.
struct Collective {
    const Array *spaces, *inputs, *outputs;
    int ranks, first, here, blocks;
    const double* numbers;

    Collective(const Array* arrays, int num_arrays, const double* given)
        : spaces(arrays),
          inputs(arrays + int(given[0])),
          ranks(int(given[0])),
          first(int(given[1])),
          here((num_arrays - ranks) / 2),
          blocks(int(given[2])),
          numbers(given + 3) {
        outputs = inputs + here;
        require(ranks <= kMostRanks, "collectives: expected at most 8 ranks");
        require(seen_by(0).half_bytes > 0,
                "collectives: expected spaces of at least 10240 bytes; make larger ones");
    }

    Spaces seen_by(int rank) const {
        Spaces all{};
        for (int q = 0; q < ranks; ++q) all.of[q] = spaces[q].as<char>();
        const long halves = spaces[0].size - kMostBlocks * long(sizeof(Flags));
        all.half_bytes = halves / (2 * kMostBlocks) / 128 * 128;
        all.ranks = ranks;
        all.rank = rank;
        return all;
    }

    // kernel(spaces, i-th input, i-th output, arguments...), for each rank here. `bytes`: those of
    // an array that decide how many blocks and threads there are, the same on all ranks.
    template <typename In, typename Out, typename... Parameters, typename... Arguments>
    void run(void (*kernel)(Spaces, const In*, Out*, Parameters...), long bytes,
             cudaStream_t stream, Arguments... arguments) const {
        const long work = (bytes + 15) / 16, most = std::min(kMostBlocks, kResidentBlocks / here);
        const long grid = blocks ? blocks : std::min(most, (work + 127) / 128);
        const unsigned threads = row_threads((work + grid - 1) / grid);
        const SideBySide streams(stream, here);
        for (int i = 0; i < here; ++i)
            launch(kernel, unsigned(grid), threads, 0, streams[i], seen_by(first + i),
                   inputs[i].as<const In>(), outputs[i].as<Out>(), arguments...);
    }
};

// Whether all these arrays begin at multiples of so many bytes.
static bool aligned(const Array* arrays, int count, size_t bytes) {
    for (int i = 0; i < count; ++i)
        if (reinterpret_cast<uintptr_t>(arrays[i].data) % bytes) return false;
    return true;
}

// body(std::integral_constant<int, n>()), with n as many as fit into 16 bytes where the arrays of
// the call, and every `stride`-th of their elements, allow it.
template <typename T, typename Body>
static void by_width_of(const Collective& call, long stride, Body&& body) {
    constexpr int n = 16 / sizeof(T);
    if (stride % n == 0 && aligned(call.inputs, 2 * call.here, 16))
        return body(std::integral_constant<int, n>());
    body(std::integral_constant<int, 1>());
}

// body(unit): the largest unsigned type of which an input is a whole number.
template <typename Body>
static void by_unit(const Collective& call, Body&& body) {
    const auto fits = [&](auto unit) {
        return call.inputs[0].size % long(sizeof unit) == 0 &&
               aligned(call.inputs, 2 * call.here, sizeof unit);
    };
    if (fits(uint4())) return body(uint4());
    if (fits(uint32_t())) return body(uint32_t());
    if (fits(uint16_t())) return body(uint16_t());
    body(uint8_t());
}

// Also whether the result is a mean, and the algorithm: one-shot, two-shot, ring.
DEVICE_KERNEL(all_reduce) {
    const Collective call(arrays, num_arrays, numbers);
    by_dtype(call.inputs[0], [&](auto kind) {
        using T = decltype(kind);
        by_width_of<T>(call, 0, [&](auto width) {
            constexpr int n = decltype(width)::value;
            const auto kernel = call.numbers[1] == 0   ? one_shot_kernel<T, n>
                                : call.numbers[1] == 1 ? two_shot_kernel<T, n>
                                                       : ring_kernel<T, n>;
            const long count = call.inputs[0].size;
            call.run(kernel, count * long(sizeof(T)), stream, count,
                     Compute<T>(call.numbers[0] != 0 ? call.ranks : 1));
        });
    });
}

// Also whether the result is a mean.
DEVICE_KERNEL(reduce_scatter) {
    const Collective call(arrays, num_arrays, numbers);
    by_dtype(call.inputs[0], [&](auto kind) {
        using T = decltype(kind);
        const long count = call.outputs[0].size;
        by_width_of<T>(call, count, [&](auto width) {
            constexpr int n = decltype(width)::value;
            call.run(reduce_scatter_kernel<T, n>, count * long(sizeof(T)), stream, count,
                     Compute<T>(call.numbers[0] != 0 ? call.ranks : 1));
        });
    });
}

// Inputs and outputs as bytes.
DEVICE_KERNEL(all_gather) {
    const Collective call(arrays, num_arrays, numbers);
    by_unit(call, [&](auto unit) {
        const long count = call.inputs[0].size / long(sizeof unit);
        call.run(all_gather_kernel<decltype(unit)>, call.inputs[0].size, stream, count);
    });
}

// Inputs and outputs as bytes; also the rank whose input all get.
DEVICE_KERNEL(broadcast) {
    const Collective call(arrays, num_arrays, numbers);
    by_unit(call, [&](auto unit) {
        const long count = call.inputs[0].size / long(sizeof unit);
        call.run(broadcast_kernel<decltype(unit)>, call.inputs[0].size, stream, count,
                 int(call.numbers[0]));
    });
}

}  // namespace minitorch
