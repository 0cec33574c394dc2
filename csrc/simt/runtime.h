// The part of CUDA's runtime that a small program needs: memory, copies, errors.
//
// Device memory is the host's, with a margin on both sides that is nobody's, registered so that the
// check build knows its bounds and what has been written. Everything is done when a call returns.

#pragma once

#include <cstddef>

#include "types.h"

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorLaunchFailure = 719,
    cudaErrorCooperativeLaunchTooLarge = 720,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault,
};
struct simt_stream;
struct simt_event;
using cudaStream_t = simt_stream*;
using cudaEvent_t = simt_event*;

cudaError_t simt_malloc(void** memory, size_t bytes, const char* name);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
cudaError_t cudaMemset(void* memory, int value, size_t bytes);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

inline cudaError_t cudaPeekAtLastError() {
    return cudaGetLastError();
}
inline cudaError_t cudaDeviceSynchronize() {
    return cudaGetLastError();
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaGetLastError();
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                                   cudaStream_t = nullptr) {
    return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t = nullptr) {
    return cudaMemset(memory, value, bytes);
}
// Streams and events are names for what is done already.
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    return *stream = nullptr, cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
    return *event = nullptr, cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t = nullptr) {
    return cudaSuccess;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned = 0) {
    return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
    return *device = 0, cudaSuccess;
}
// The one device is what the emulator's options say, with few multiprocessors: small grids have more
// blocks.
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrComputeCapabilityMajor = 75,
};
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
template <typename T>
cudaError_t cudaMemcpyToSymbol(T& symbol, const void* from, size_t bytes) {
    return cudaMemcpy(&symbol, from, bytes, cudaMemcpyHostToDevice);
}
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
    return cudaSuccess;
}
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;

// What kernel<<<...>>> has no place for.
enum cudaLaunchAttributeID {
    cudaLaunchAttributeIgnore = 0,
    cudaLaunchAttributeCooperative = 2,
    cudaLaunchAttributeClusterDimension = 4,
};
union cudaLaunchAttributeValue {
    int cooperative;
    uint3 clusterDim;
};
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
    dim3 grid, block;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
    dim3& simt_grid_size() { return grid; }  // config.gridDim, see simt.h
    dim3& simt_block_size() { return block; }
};

// The memory is named by the variable that holds it, as written.
#define cudaMalloc(memory, bytes) simt_malloc(reinterpret_cast<void**>(memory), bytes, #memory)
#define cudaMallocManaged(memory, bytes) cudaMalloc(memory, bytes)

namespace simt {

// Keep an error for cudaGetLastError; returns it.
cudaError_t remember_error(cudaError_t error);

}  // namespace simt
