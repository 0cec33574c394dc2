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

#include "../array.h"

namespace minitorch {

using Kernel = void (*)(const Array* arrays, int num_arrays, const double* numbers);

// Enters a kernel into the table under its name, for one instruction set.
struct Entry {
    Entry(const char* instruction_set, const char* name, Kernel kernel);
};

// Memory of this thread, aligned to 64 bytes and kept between calls; `slot` (0 to 8) tells apart what
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
