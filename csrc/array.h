// Arrays as kernels are given them, on whatever device, and what they say when they do not fit.

#pragma once

#include <cstddef>
#include <cstdint>

namespace minitorch {

enum class Dtype { float32, float64, bfloat16, float16, int64, int32, uint8, boolean, none };

constexpr int kMaxDims = 8;

// An array of NumPy's. Strides count elements, and may be 0 or negative. `dtype` is none, and
// everything else 0, where Python passed None.
struct Array {
    void* data;
    Dtype dtype;
    int ndim;
    long size;
    long shape[kMaxDims];
    long strides[kMaxDims];

    template <typename T>
    T* as() const {
        return static_cast<T*>(data);
    }
    explicit operator bool() const { return data != nullptr; }
    // From the end: -1 is the last dimension.
    long dim(int i) const { return shape[i < 0 ? ndim + i : i]; }
    long stride(int i) const { return strides[i < 0 ? ndim + i : i]; }
};

// Throws std::invalid_argument, which Python sees as ValueError.
[[noreturn]] void fail(const char* message);

inline void require(bool condition, const char* message) {
    if (!condition) [[unlikely]]
        fail(message);
}

}  // namespace minitorch
