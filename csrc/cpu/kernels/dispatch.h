// From the dtype of an array to the template argument of a kernel.

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

}  // namespace minitorch::MT_INSTRUCTION_SET
