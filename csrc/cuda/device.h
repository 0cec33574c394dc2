// The host's side of a kernel: what Python calls, which chooses a template and launches it.
//
//     DEVICE_KERNEL(softmax) {  // x, out (rows, columns); scale
//         by_dtype(arrays[0], [&](auto kind) {
//             using T = decltype(kind);
//             launch(softmax_kernel<T>, blocks, 256, 0, stream, arrays[0].as<const T>(), ...);
//         });
//     }
//
// The same file is compiled by nvcc, for a GPU, and by g++, for the emulator. Python validates shapes,
// dtypes and layout (minitorch/kernels/cuda) before it calls; nothing here waits for the device.

#pragma once

#include "../array.h"
#include "../simt/simt.h"

namespace minitorch {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

using DeviceKernel = void (*)(const Array* arrays, int num_arrays, const double* numbers,
                              cudaStream_t stream);

// Enters a kernel into the table of module.cpp under its name.
struct DeviceEntry {
    DeviceEntry(const char* name, DeviceKernel kernel);
};

// What sums are made in.
template <typename T>
struct Accumulate {
    using type = float;
};
template <>
struct Accumulate<double> {
    using type = double;
};
template <typename T>
using Compute = typename Accumulate<T>::type;

// body(T()) with T the array's dtype: float, double, bfloat16 or float16.
template <typename Body>
void by_dtype(const Array& array, Body&& body) {
    switch (array.dtype) {
        case Dtype::float32: return body(float());
        case Dtype::float64: return body(double());
        case Dtype::bfloat16: return body(bfloat16());
        case Dtype::float16: return body(float16());
        default: fail("a kernel was given an array of a dtype that it does not take");
    }
}

inline unsigned ceil_div(long a, long b) { return static_cast<unsigned>((a + b - 1) / b); }

}  // namespace minitorch

#define DEVICE_KERNEL(name)                                                                    \
    static void name##_on_device(const minitorch::Array* arrays, int num_arrays,               \
                                 const double* numbers, cudaStream_t stream);                  \
    static const minitorch::DeviceEntry name##_entry(#name, name##_on_device);                 \
    static void name##_on_device([[maybe_unused]] const minitorch::Array* arrays,              \
                                 [[maybe_unused]] int num_arrays,                              \
                                 [[maybe_unused]] const double* numbers,                       \
                                 [[maybe_unused]] cudaStream_t stream)
