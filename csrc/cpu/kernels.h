// The kernels of one instruction set, as a table of functions. kernels.cpp fills one table each
// time it is compiled; module.cpp takes the best that the processor supports.

#pragma once

namespace minitorch {

struct Kernels {
    void (*softmax_float)(const float* x, float* out, long rows, long columns, float scale);
    void (*softmax_double)(const double* x, double* out, long rows, long columns, double scale);
};

namespace portable {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

}  // namespace minitorch
