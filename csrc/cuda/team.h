// Who has a row together: the threads of one block, or, of a row too long for its shared memory,
// the blocks of a cluster, each of which keeps a part there. The row is then read from memory once.
//
//     template <typename T, int n, typename Team>
//     __global__ void kernel(Row row, const T* x, ...) {
//         Team team(row);
//         const Part part = team.template part<n>();
//         for (int i = threadIdx.x * n; i < part.size; i += blockDim.x * n) ... part.begin + i ...
//         sum = team.template reduce<Plus>(sum, C(0));     of all threads of all blocks; all have
//         it
//     }
//
//     by_team<T>(rows, columns, {x.data}, 1, [&](auto team, auto width, const RowLaunch& how) {
//         how(kernel<T, decltype(width)::value, TeamOf<decltype(team)>>, stream, x.as<const T>(),
//         ...);
//     });
//
// Blocks of a cluster write into each other's shared memory (sm_90). In reduction k each leaves its
// number with all, in place k % 2, and waits for the others: nobody is asked to wait until all have
// read, as the next numbers go to the other place.

#pragma once

#include "ptx.h"
#include "reduce.h"
#include "rows.h"

namespace minitorch {

constexpr int kMostTeam = 8;  // what every GPU with clusters can run

// What a kernel is told of its rows: whether each block keeps its part in dynamic shared memory.
struct Row {
    int columns, blocks;
    bool keep;
};

// How many elements, n to an access, the largest part of a row has.
__host__ __device__ inline long largest_part(const Row& row, int n) {
    const int steps = row.blocks * n;
    return (row.columns + steps - 1) / steps * n;
}

// A block's part of a row, from an element of the row on.
struct Part {
    long begin;
    int size;
};

class OneBlock {
public:
    static constexpr long kMostKept = 40 * 1024;

    __device__ explicit OneBlock(const Row& row) : columns_(row.columns) {}
    __device__ long row() const { return blockIdx.x; }
    __device__ bool leads() const { return threadIdx.x == 0; }
    template <int n>
    __device__ Part part() const {
        return {0, columns_};
    }
    template <typename Combine, typename C>
    __device__ C reduce(C x, C neutral) {
        return reduce_block<Combine>(x, neutral);
    }

private:
    int columns_;
};

class BlocksOfCluster {
public:
    static constexpr long kMostKept = 96 * 1024;  // so that a processor has room for two blocks

    __device__ explicit BlocksOfCluster(const Row& row) : row_(row), rank_(ptx::cluster_rank()) {
        ptx::cluster_arrive();
    }
    __device__ long row() const { return blockIdx.x / row_.blocks; }
    __device__ bool leads() const { return rank_ == 0 && threadIdx.x == 0; }
    template <int n>
    __device__ Part part() const {
        const int each = int(largest_part(row_, n)), begin = min(int(rank_) * each, row_.columns);
        return {begin, min(each, row_.columns - begin)};
    }
    template <typename Combine, typename C>
    __device__ C reduce(C x, C neutral) {
        SHARED(C, told, [2][kMostTeam]);
        x = reduce_block<Combine>(x, neutral);
        if (turn_ == 0) ptx::cluster_wait();  // until all blocks run, and have shared memory
        const int place = turn_++ % 2;
        if (threadIdx.x < row_.blocks) *ptx::in_block(&told[place][rank_], threadIdx.x) = x;
        ptx::cluster_arrive();
        ptx::cluster_wait();
        C all = told[place][0];
        for (int i = 1; i < row_.blocks; ++i) all = Combine()(all, told[place][i]);
        return all;
    }

private:
    Row row_;
    unsigned rank_;
    int turn_ = 0;
};

// Of a kernel with a team for each row.
struct RowLaunch {
    Row row;
    long rows;
    unsigned threads;
    size_t kept_bytes;

    template <typename... Parameters, typename... Arguments>
    void operator()(void (*kernel)(Row, Parameters...), cudaStream_t stream,
                    Arguments... arguments) const {
        launch({.cluster = unsigned(row.blocks)}, kernel, unsigned(rows * row.blocks), threads,
               kept_bytes, stream, row, arguments...);
    }
};

template <typename Team>
using TeamOf = typename Team::type;

// Clusters are compiled for sm_90a alone, which no later GPU understands.
inline bool has_clusters() {
    int device = 0, major = 0;
    (void)cudaGetDevice(&device);
    (void)cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    return major == 9;
}

// How many blocks have a row of so many bytes together.
inline int blocks_for(long bytes) {
    constexpr long each = 32 * 1024;
    if (bytes <= OneBlock::kMostKept || !has_clusters()) return 1;
    int blocks = 2;
    while (blocks < kMostTeam && bytes > blocks * each) blocks *= 2;
    return blocks;
}

// body(team, width, RowLaunch): `width` elements to an access, as by_width has it; `arrays` is how
// many rows a team keeps at once, and may be 0.
template <typename T, typename Body>
void by_team(long rows, long columns, std::initializer_list<const void*> pointers, int arrays,
             Body&& body) {
    by_width<T>(columns, pointers, [&](auto width) {
        constexpr int n = decltype(width)::value;
        const long row_bytes = columns * long(sizeof(T)) * max(arrays, 1);
        const auto with = [&](auto team, int blocks) {
            Row row{int(columns), blocks, false};
            const long part = largest_part(row, n), bytes = part * long(sizeof(T)) * arrays;
            row.keep = bytes > 0 && bytes <= decltype(team)::type::kMostKept;
            body(team, width,
                 RowLaunch{row, rows, row_threads(part / n), row.keep ? size_t(bytes) : 0});
        };
        if (const int blocks = blocks_for(row_bytes); blocks > 1)
            with(std::type_identity<BlocksOfCluster>(), blocks);
        else
            with(std::type_identity<OneBlock>(), 1);
    });
}

}  // namespace minitorch
