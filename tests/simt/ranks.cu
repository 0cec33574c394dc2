// Call after call of all-reduce, each rank in a stream of its own: some are in the next call, or in
// the one after, while others are in this one. `ranks SEED` draws sizes, algorithms and blocks; it
// prints "right" if all sums are.

#include "../../csrc/cuda/collectives.cu"

#include <cstdio>
#include <cstdlib>
#include <random>

namespace minitorch {

DeviceEntry::DeviceEntry(const char*, DeviceKernel) {}

void fail(const char* message) {
    std::fprintf(stderr, "%s\n", message);
    std::abort();
}

}  // namespace minitorch

using minitorch::Array;
using minitorch::Dtype;

constexpr int kRanks = 4, kCalls = 8, kMost = 150;
constexpr long kSpaceBytes = 10240;

int main(int argc, char** argv) {
    std::mt19937 random(argc > 1 ? std::atoi(argv[1]) : 0);
    const auto below = [&](int n) { return int(random() % n); };
    char* spaces;
    float *in, *out;
    const int numbers = kRanks * kCalls * kMost;
    cudaMalloc(&spaces, kRanks * kSpaceBytes);
    cudaMalloc(&in, numbers * sizeof(float));
    cudaMalloc(&out, numbers * sizeof(float));
    cudaMemset(spaces, 0, kRanks * kSpaceBytes);
    std::vector<float> host(numbers);
    for (float& x : host) x = float(below(100));  // small enough for sums to be exact
    cudaMemcpy(in, host.data(), numbers * sizeof(float), cudaMemcpyHostToDevice);
    int sizes[kCalls];
    {
        const Together ranks;
        for (int call = 0; call < kCalls; ++call) {
            const long size = sizes[call] = 1 + below(kMost);
            const double blocks = 1 + below(3), algorithm = below(3);
            for (int rank = 0; rank < kRanks; ++rank) {
                const int at = (call * kRanks + rank) * kMost;
                Array arrays[kRanks + 2];
                for (int q = 0; q < kRanks; ++q)
                    arrays[q] = {spaces + q * kSpaceBytes, Dtype::uint8, 1, kSpaceBytes,
                                 {kSpaceBytes}, {1}};
                arrays[kRanks] = {in + at, Dtype::float32, 1, size, {size}, {1}};
                arrays[kRanks + 1] = {out + at, Dtype::float32, 1, size, {size}, {1}};
                const double how[] = {kRanks, double(rank), blocks, 0, algorithm};
                minitorch::all_reduce_on_device(arrays, kRanks + 2, how,
                                                reinterpret_cast<cudaStream_t>(rank + 1L));
            }
        }
    }
    std::vector<float> found(numbers);
    cudaMemcpy(found.data(), out, numbers * sizeof(float), cudaMemcpyDeviceToHost);
    bool right = cudaGetLastError() == cudaSuccess;
    for (int call = 0; call < kCalls; ++call)
        for (int i = 0; i < sizes[call]; ++i) {
            const auto at = [&](int rank) { return (call * kRanks + rank) * kMost + i; };
            float sum = 0;
            for (int rank = 0; rank < kRanks; ++rank) sum += host[at(rank)];
            for (int rank = 0; rank < kRanks; ++rank) right &= found[at(rank)] == sum;
        }
    std::printf("%s\n", right ? "right" : "wrong");
}
