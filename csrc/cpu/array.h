// What a kernel is given: arrays and numbers, in the order in which Python passed them.
//
// A kernel's file defines one function for each name under which Python calls it:
//
//     KERNEL(softmax) {  // x, out (rows, columns); scale
//         const Array& x = arrays[0];
//         ...
//     }
//
// It is compiled once per instruction set and enters itself into the table of module.cpp. Python
// validates shapes, dtypes and layout (minitorch/kernels/cpu) before it calls; `require` repeats
// what memory safety rests on.

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

using Kernel = void (*)(const Array* arrays, int num_arrays, const double* numbers);

// Enters a kernel into the table under its name, for one instruction set.
struct Entry {
    Entry(const char* instruction_set, const char* name, Kernel kernel);
};

// Throws std::invalid_argument, which Python sees as ValueError.
[[noreturn]] void fail(const char* message);

inline void require(bool condition, const char* message) {
    if (!condition) [[unlikely]]
        fail(message);
}

// Memory of this thread, aligned to 64 bytes and kept between calls; `slot` (0 to 7) tells apart what
// is in use at the same time.
void* scratch(int slot, size_t bytes);

template <typename T>
T* scratch(int slot, long count) {
    return static_cast<T*>(scratch(slot, sizeof(T) * static_cast<size_t>(count)));
}

}  // namespace minitorch

#define MT_STRING_(x) #x
#define MT_STRING(x) MT_STRING_(x)
#define KERNEL(name)                                                                              \
    static void name##_kernel(const Array* arrays, int num_arrays, const double* numbers);        \
    static const Entry name##_entry(MT_STRING(MT_INSTRUCTION_SET), #name, name##_kernel);         \
    static void name##_kernel([[maybe_unused]] const Array* arrays,                               \
                              [[maybe_unused]] int num_arrays,                                    \
                              [[maybe_unused]] const double* numbers)
