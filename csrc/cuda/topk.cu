// The k first numbers of every row, the largest or the smallest, in order, and their places; a
// block to a row. Two ways to them:
//
//     rounds   k times the first of those that come after the last one found. Each round reads the
//              row again, which all but the first find in a cache: best for a few, such as the
//              experts of a token, or the one of an argmax.
//     merging  the row passes by in pieces as long as what is kept, which is sorted. A piece that
//              holds none of the first k so far is dropped; any other is sorted the other way
//              round, so that the better of each two neighbours are the first of both together, and
//              only have to be merged. For any k, up to a sort of the whole row.
//
// Source: Batcher 1968, "Sorting networks and their applications"; Shanbhag et al. 2018, "Efficient
// top-k query processing on massively parallel hardware" (bitonic top-k).

#include "ranked.h"
#include "rows.h"

namespace minitorch {

template <typename Entry, int n, typename T>
__global__ void topk_by_rounds_kernel(const T* x, T* values, int64_t* indices, int columns, int k) {
    const T* row = x + long(blockIdx.x) * columns;
    Entry last;
    for (int round = 0; round < k; ++round) {
        Entry first;
        for (int i = threadIdx.x * n; i < columns; i += blockDim.x * n) {
            const Few<T, n> v = load<n>(row + i);
            for (int j = 0; j < n; ++j) {
                const Entry here{Compute<T>(v[j]), i + j};
                if (round == 0 || last.before(here)) first.meet(here);
            }
        }
        first.reduce_block();
        last = first;
        if (threadIdx.x > 0) continue;
        values[long(blockIdx.x) * k + round] = T(last.value);
        indices[long(blockIdx.x) * k + round] = last.index;
    }
}

// A bitonic network over x, whose length is a power of two: from = 2 sorts it, from = length merges
// it, if it rises and then falls, or the other way round.
template <typename Entry>
__device__ void sort(Entry* x, int length, int from, bool reversed) {
    for (int size = from; size <= length; size *= 2)
        for (int stride = size / 2; stride > 0; stride /= 2) {
            __syncthreads();
            for (int t = threadIdx.x; t < length / 2; t += blockDim.x) {
                const int i = 2 * t - (t & (stride - 1)), j = i + stride;
                const bool upward = ((i & size) == 0) != reversed;
                const Entry a = x[i], b = x[j];
                if (upward ? b.before(a) : a.before(b)) {
                    x[i] = b;
                    x[j] = a;
                }
            }
        }
    __syncthreads();
}

// space: 2 length entries for each row, or null where they fit into shared memory.
template <typename Entry, typename T>
__global__ void topk_by_merging_kernel(const T* x, T* values, int64_t* indices, int columns, int k,
                                       int length, Entry* space) {
    SHARED_DYNAMIC(Entry, shared);
    Entry* const best = space ? space + long(blockIdx.x) * 2 * length : shared;
    Entry* const piece = best + length;
    const T* row = x + long(blockIdx.x) * columns;
    for (int begin = 0; begin < columns; begin += length) {
        Entry* const to = begin ? piece : best;
        bool matters = begin == 0;
        for (int i = threadIdx.x; i < length; i += blockDim.x) {
            Entry here;
            if (begin + i < columns) here = {Compute<T>(row[begin + i]), begin + i};
            to[i] = here;
            matters |= begin > 0 && here.before(best[k - 1]);
        }
        if (!__syncthreads_or(matters)) continue;
        sort(to, length, 2, begin > 0);
        if (begin == 0) continue;
        for (int i = threadIdx.x; i < length; i += blockDim.x) best[i].meet(piece[i]);
        sort(best, length, length, false);
    }
    for (int i = threadIdx.x; i < k; i += blockDim.x) {
        values[long(blockIdx.x) * k + i] = T(best[i].value);
        indices[long(blockIdx.x) * k + i] = best[i].index;
    }
}

enum class Order { largest, smallest, smallest_or_nan };

// x (rows, columns), contiguous; values, indices (rows, k), int64; space (rows, bytes) or None; the
// number of an Order; length, a power of two not below k: how many to keep, or 0, for rounds.
DEVICE_KERNEL(topk) {
    const Array &x = arrays[0], &values = arrays[1], &indices = arrays[2], &space = arrays[3];
    const unsigned rows = unsigned(x.shape[0]);
    const int columns = int(x.shape[1]), k = int(values.shape[1]), length = int(numbers[1]);
    by_dtype(x, [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const auto run = [&](auto entry) {
            using Entry = decltype(entry);
            if (length) {
                launch(topk_by_merging_kernel<Entry, T>, rows, 256,
                       space ? 0 : 2 * length * sizeof(Entry), stream, x.as<const T>(),
                       values.as<T>(), indices.as<int64_t>(), columns, k, length,
                       space.as<Entry>());
                return;
            }
            by_width<T>(columns, {x.data}, [&](auto width) {
                constexpr int n = decltype(width)::value;
                launch(topk_by_rounds_kernel<Entry, n, T>, rows, row_threads(columns / n), 0,
                       stream, x.as<const T>(), values.as<T>(), indices.as<int64_t>(), columns, k);
            });
        };
        switch (Order(int(numbers[0]))) {
            case Order::largest:
                return run(Ranked<C, true>());
            case Order::smallest:
                return run(Ranked<C, false>());
            case Order::smallest_or_nan:
                return run(Ranked<C, false, true>());
        }
    });
}

}  // namespace minitorch
