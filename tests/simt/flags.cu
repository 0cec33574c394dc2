// Ranks that tell each other by flags what they have done, each wrong in one way, and their correct
// twins. Every rank is a grid of one block. As zoo.cu.

#include "../../csrc/cuda/ptx.h"

#include <cstring>
#include <string>

constexpr int kThreads = 32, kRanks = 4;

// For each rank, what it has to say, in two halves; and its flags, one of each other rank.
struct Spaces {
    float* said[2];
    uint32_t* flags;
    __device__ float* of(int rank, int half) const { return said[half] + rank * kThreads; }
    __device__ uint32_t* flag(int at, int from) const { return flags + at * kRanks + from; }
};

// Thread q tells rank q that step `step` is there, and waits for rank q's.
__device__ void meet(const Spaces& spaces, int rank, uint32_t step) {
    const int other = threadIdx.x;
    __syncthreads();
    if (other < kRanks) {
        ptx::store_release(spaces.flag(other, rank), step);
        while (int32_t(ptx::load_acquire(spaces.flag(rank, other)) - step) < 0) {}
    }
    __syncthreads();
}

template <bool wrong>
__global__ void flag_without_release(Spaces spaces, int rank, float* out) {
    const int other = threadIdx.x;
    spaces.of(rank, 0)[threadIdx.x] = float(rank);  // finds race
    __syncthreads();
    if (other < kRanks) {
        if (wrong)
            *static_cast<volatile uint32_t*>(spaces.flag(other, rank)) = 1;
        else
            ptx::store_release(spaces.flag(other, rank), 1);
        while (ptx::load_acquire(spaces.flag(rank, other)) != 1) {}
    }
    __syncthreads();
    out[threadIdx.x] = spaces.of((rank + 1) % kRanks, 0)[threadIdx.x];  // finds race
}

template <bool wrong>
__global__ void flag_without_acquire(Spaces spaces, int rank, float* out) {
    const int other = threadIdx.x;
    spaces.of(rank, 0)[threadIdx.x] = float(rank);  // finds race
    __syncthreads();
    if (other < kRanks) {
        ptx::store_release(spaces.flag(other, rank), 1);
        if (wrong)
            while (*static_cast<volatile uint32_t*>(spaces.flag(rank, other)) != 1) {}
        else
            while (ptx::load_acquire(spaces.flag(rank, other)) != 1) {}
    }
    __syncthreads();
    out[threadIdx.x] = spaces.of((rank + 1) % kRanks, 0)[threadIdx.x];  // finds race
}

// The thread that has acquired knows; the others of its block must have waited for it.
template <bool wrong>
__global__ void flag_that_another_thread_read(Spaces spaces, int rank, float* out) {
    const int other = threadIdx.x;
    spaces.of(rank, 0)[threadIdx.x] = float(rank);  // finds race
    __syncthreads();
    if (other < kRanks) {
        ptx::store_release(spaces.flag(other, rank), 1);
        while (ptx::load_acquire(spaces.flag(rank, other)) != 1) {}
    }
    if (!wrong) __syncthreads();
    out[threadIdx.x] = spaces.of((rank + 1) % kRanks, 0)[threadIdx.x];  // finds race uninitialised
}

// Flags that say "there" instead of the step: in the second one they still say it of the first. It
// shows when somebody is late.
template <bool wrong>
__global__ void flag_of_the_last_call(Spaces spaces, int rank, float* out) {
    for (int step = 1; step <= 2; ++step) {
        if (step == 2 && rank == 0)
            for (int i = 0; i < 40; ++i) __nanosleep(100);
        spaces.of(rank, step % 2)[threadIdx.x] = float(step);  // finds race
        meet(spaces, rank, wrong ? 1 : step);
        out[threadIdx.x] = spaces.of((rank + 1) % kRanks, step % 2)[threadIdx.x];  // finds race uninitialised
    }
}

// With one buffer a rank says the next thing while others still read the last one.
template <bool wrong>
__global__ void one_buffer(Spaces spaces, int rank, float* out) {
    for (int step = 1; step <= 2; ++step) {
        const int half = wrong ? 0 : step % 2;
        spaces.of(rank, half)[threadIdx.x] = float(step);  // finds race
        meet(spaces, rank, step);
        out[threadIdx.x] = spaces.of((rank + 1) % kRanks, half)[threadIdx.x];  // finds race
    }
}

// Two buffers, and in the second step only neighbours meet: the rank opposite may still be reading
// what all were told in the first one, when the third step writes there.
template <bool wrong>
__global__ void meeting_of_neighbours(Spaces spaces, int rank, float* out) {
    const int other = threadIdx.x;
    for (int step = 1; step <= 3; ++step) {
        const bool all = step == 1 || !wrong;
        spaces.of(rank, step % 2)[threadIdx.x] = float(step);  // finds race
        __syncthreads();
        if (other < kRanks && (all || other != (rank + 2) % kRanks)) {
            ptx::store_release(spaces.flag(other, rank), step);
            while (int32_t(ptx::load_acquire(spaces.flag(rank, other)) - step) < 0) {}
        }
        __syncthreads();
        const int from = step == 1 ? (rank + 2) % kRanks : (rank + 1) % kRanks;
        out[threadIdx.x] = spaces.of(from, step % 2)[threadIdx.x];  // finds race
    }
}

template <bool wrong>
void run(const std::string& name, const Spaces& spaces, float* out) {
    const Together ranks;
    for (int rank = 0; rank < kRanks; ++rank) {
#define CASE(kernel) \
    if (name == #kernel) launch(kernel<wrong>, 1, kThreads, 0, 0, spaces, rank, out + rank * kThreads)
        CASE(flag_without_release);
        CASE(flag_without_acquire);
        CASE(flag_that_another_thread_read);
        CASE(flag_of_the_last_call);
        CASE(one_buffer);
        CASE(meeting_of_neighbours);
#undef CASE
    }
}

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    Spaces spaces;
    float* out;
    for (float*& half : spaces.said) cudaMalloc(&half, kRanks * kThreads * sizeof(float));
    cudaMalloc(&spaces.flags, kRanks * kRanks * sizeof(uint32_t));
    cudaMalloc(&out, kRanks * kThreads * sizeof(float));
    cudaMemset(spaces.flags, 0, kRanks * kRanks * sizeof(uint32_t));
    if (std::strcmp(argv[2], "wrong") == 0)
        run<true>(argv[1], spaces, out);
    else
        run<false>(argv[1], spaces, out);
}
