// A launch, in words that nvcc and g++ both read: kernel<<<grid, block, bytes, stream>>>(arguments)
// is
//
//     launch(kernel, grid, block, bytes, stream, arguments...);
//
// and what the brackets have no place for comes first:
//
//     launch({.cluster = 2}, kernel, grid, block, bytes, stream, arguments...);

#pragma once

// How the blocks of a grid belong together.
struct LaunchOptions {
    dim3 cluster = 1;  // blocks that run at once, and read each other's shared memory; sm_90
    bool cooperative = false;  // all blocks run at once, and can wait for each other
};

template <typename... Parameters, typename... Arguments>
cudaError_t launch(const LaunchOptions& options, void (*kernel)(Parameters...), dim3 grid,
                   dim3 block, size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
    if (shared_bytes > 48 * 1024) {
        const cudaError_t error = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
        if (error != cudaSuccess) return error;
    }
    cudaLaunchAttribute attributes[2]{};
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    const dim3 cluster = options.cluster;
    if (cluster.x * cluster.y * cluster.z > 1) {
        auto& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim = {cluster.x, cluster.y, cluster.z};
    }
    if (options.cooperative) {
        auto& attribute = attributes[config.numAttrs++];
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
    }
    return cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Arguments&&... arguments) {
    return launch(LaunchOptions{}, kernel, grid, block, shared_bytes, stream,
                  static_cast<Arguments&&>(arguments)...);
}
