// What the tensor memory accelerator is told of a tensor in global memory, sm_90:
//
//     const CUtensorMap map = tensor_map(data, {columns, rows}, {1, columns}, {64, 64}, swizzle);
//     launch(kernel, ..., map);              // whose parameter is a const __grid_constant__ CUtensorMap
//     ptx::tma_load(tile, &map, barrier, column, row);
//
// The innermost dimension comes first, strides count elements. data and all strides but the first
// are at multiples of 16 bytes. What a box has beyond the tensor's edges is loaded as zeros, and not
// stored. With a swizzle of 128 bytes a box is at most so wide.

#pragma once

#include "device.h"
#include "wgmma.h"

namespace minitorch {

#ifdef __CUDACC__

// The driver's function, found at run time: a machine without a driver can load the module.
inline auto tensor_map_encoder() {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    constexpr const char* name = "cuTensorMapEncodeTiled";
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
    cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
    require(found, "the driver has no cuTensorMapEncodeTiled; expected one of CUDA 12 or later");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
}

template <typename T>
constexpr CUtensorMapDataType kTensorMapType =
    std::is_same_v<T, bfloat16>  ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
    : std::is_same_v<T, float16> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
    : std::is_same_v<T, float>   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                                 : CU_TENSOR_MAP_DATA_TYPE_UINT8;

inline CUtensorMapSwizzle swizzle_of_map(ptx::Swizzle swizzle) {
    switch (swizzle) {
        case ptx::Swizzle::bytes_128: return CU_TENSOR_MAP_SWIZZLE_128B;
        case ptx::Swizzle::bytes_64: return CU_TENSOR_MAP_SWIZZLE_64B;
        case ptx::Swizzle::bytes_32: return CU_TENSOR_MAP_SWIZZLE_32B;
        default: return CU_TENSOR_MAP_SWIZZLE_NONE;
    }
}

template <typename T, int rank>
CUtensorMap encode_tensor_map(const T* data, const long (&size)[rank], const long (&stride)[rank],
                              const int (&box)[rank], ptx::Swizzle swizzle) {
    static const auto encode = tensor_map_encoder();
    cuuint64_t sizes[rank], bytes[rank];
    cuuint32_t boxes[rank], every[rank];
    for (int i = 0; i < rank; ++i) {
        sizes[i] = cuuint64_t(size[i]);
        boxes[i] = cuuint32_t(box[i]);
        every[i] = 1;
        if (i) bytes[i - 1] = cuuint64_t(stride[i]) * sizeof(T);
    }
    CUtensorMap map;
    const CUresult result =
        encode(&map, kTensorMapType<T>, rank, const_cast<T*>(data), sizes,
               bytes, boxes, every, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of_map(swizzle),
               CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    require(result == CUDA_SUCCESS, "the driver refused a tensor map");
    return map;
}

#else

template <typename T, int rank>
CUtensorMap encode_tensor_map(const T* data, const long (&size)[rank], const long (&stride)[rank],
                              const int (&box)[rank], ptx::Swizzle swizzle) {
    CUtensorMap map{const_cast<T*>(data), rank, sizeof(T), {}, {}, {}, 0};
    for (int i = 0; i < rank; ++i) {
        map.size[i] = unsigned(size[i]);
        map.box[i] = unsigned(box[i]);
        map.stride[i] = uint64_t(stride[i]) * sizeof(T);
    }
    map.swizzle = swizzle == ptx::Swizzle::none ? 0 : 256u >> unsigned(swizzle);
    return map;
}

#endif

template <typename T, int rank>
CUtensorMap tensor_map(const T* data, const long (&size)[rank], const long (&stride)[rank],
                       const int (&box)[rank], ptx::Swizzle swizzle) {
    bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride[0] == 1;
    for (int i = 1; i < rank; ++i) aligned &= stride[i] * sizeof(T) % 16 == 0;
    require(aligned, "a tensor map takes lines that begin at multiples of 16 bytes");
    for (const int side : box) require(0 < side && side <= 256, "a box has 1 to 256 on a side");
    return encode_tensor_map(data, size, stride, box, swizzle);
}

}  // namespace minitorch
