// Compiled once per instruction set, with -DMT_INSTRUCTION_SET=portable|avx2|avx512,
// -DMT_VECTOR_BYTES=16|32|64 and the flags that let the compiler use it (setup.py).

#include "kernels.h"

#include "softmax.h"

namespace minitorch::MT_INSTRUCTION_SET {

const Kernels kernels = {
    .softmax_float = softmax<float>,
    .softmax_double = softmax<double>,
};

}  // namespace minitorch::MT_INSTRUCTION_SET
