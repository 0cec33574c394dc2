// From the dtype of an array to the template argument of a kernel, and from a row to where it lies.

#pragma once

#include "../array.h"
#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

// f is called with an object of the storage type.
template <typename F>
void by_dtype(const Array& x, const char* otherwise, F f) {
    switch (x.dtype) {
        case Dtype::float32:
            return f(float{});
        case Dtype::float64:
            return f(double{});
        case Dtype::bfloat16:
            return f(bfloat16{});
        default:
            fail(otherwise);
    }
}

// The same where bfloat16 is not taken.
template <typename F>
void by_float(const Array& x, const char* otherwise, F f) {
    switch (x.dtype) {
        case Dtype::float32:
            return f(float{});
        case Dtype::float64:
            return f(double{});
        default:
            fail(otherwise);
    }
}

// Where a row begins in an array of any strides; rows lie along the last dimension.
inline long row_offset(const Array& array, long row) {
    long at = 0;
    for (int i = array.ndim - 2; i >= 0; row /= array.shape[i--])
        at += row % array.shape[i] * array.strides[i];
    return at;
}

}  // namespace minitorch::MT_INSTRUCTION_SET
