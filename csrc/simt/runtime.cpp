#include "runtime.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "check.h"
#include "machine.h"

namespace {

constexpr size_t kMargin = 4096;
thread_local cudaError_t last_error = cudaSuccess;

}  // namespace

cudaError_t simt::remember_error(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

cudaError_t simt_malloc(void** memory, size_t bytes, const char* name) {
    auto* all =
        static_cast<char*>(std::aligned_alloc(256, (bytes + 2 * kMargin + 255) / 256 * 256));
    if (!all) return simt::remember_error(cudaErrorMemoryAllocation);
    std::memset(all, 0xFF, bytes + 2 * kMargin);
    *memory = all + kMargin;
    simt::register_memory(*memory, bytes, name[0] == '&' ? name + 1 : name, false);
    return cudaSuccess;
}

cudaError_t cudaFree(void* memory) {
    if (memory) {
        simt::forget_memory(memory);
        // A kernel that goes on writing there is to be found out, not to ruin the host's memory.
        if (!simt::checking) std::free(static_cast<char*>(memory) - kMargin);
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    std::memmove(to, from, bytes);
    if (kind != cudaMemcpyDeviceToHost && kind != cudaMemcpyHostToHost)
        simt::mark_written(to, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemset(void* memory, int value, size_t bytes) {
    std::memset(memory, value, bytes);
    simt::mark_written(memory, bytes);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrMultiProcessorCount ? 2 : simt::options().capability / 10;
    return cudaSuccess;
}

cudaError_t cudaGetLastError() {
    return std::exchange(last_error, cudaSuccess);
}

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorCooperativeLaunchTooLarge:
            return "too many threads for a cooperative launch";
        default:
            return "a kernel failed";
    }
}
