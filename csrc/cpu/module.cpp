// The Python module minitorch._cpu: its kernels take NumPy arrays, C-contiguous and of exactly
// their dtype, and write into arrays that Python allocated. Anything else is a TypeError. Shapes
// are the business of minitorch/kernels/cpu.py.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "buffers.h"
#include "kernels.h"

namespace py = pybind11;

namespace minitorch {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// What was compiled and what this processor supports, best first.
std::vector<std::pair<std::string, const Kernels*>> supported() {
    std::vector<std::pair<std::string, const Kernels*>> found;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        found.emplace_back("avx512", &avx512::kernels);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        found.emplace_back("avx2", &avx2::kernels);
#endif
    found.emplace_back("portable", &portable::kernels);
    return found;
}

const Kernels* chosen = supported().front().second;

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const auto& [name, kernels] : supported()) names.push_back(name);
    return names;
}

void use_instruction_set(const std::string& wanted) {
    for (const auto& [name, kernels] : supported()) {
        if (name == wanted) {
            chosen = kernels;
            return;
        }
    }
    throw std::invalid_argument("use_instruction_set: this processor does not support '" + wanted +
                                "'; see instruction_sets()");
}

template <typename T>
void softmax(const Array<T>& x, Array<T>& out, T scale) {
    if (x.ndim() == 0 || out.size() != x.size())
        throw std::invalid_argument("softmax: x needs a dimension, and out the size of x");
    const long columns = x.shape(x.ndim() - 1);
    const long rows = columns ? x.size() / columns : 0;
    const T* from = x.data();
    T* to = out.mutable_data();
    py::gil_scoped_release unlocked;
    if constexpr (sizeof(T) == 4)
        chosen->softmax_float(from, to, rows, columns, scale);
    else
        chosen->softmax_double(from, to, rows, columns, scale);
}

}  // namespace
}  // namespace minitorch

PYBIND11_MODULE(_cpu, module) {
    using namespace minitorch;
    const auto x = py::arg("x").noconvert();
    const auto out = py::arg("out").noconvert();
    module.doc() = "minitorch's kernels in C++ (csrc/cpu), and its recycling of buffers";
    module.def("instruction_sets", &instruction_sets,
               "The instruction sets that this processor supports, best first.");
    module.def("use_instruction_set", &use_instruction_set, py::arg("name"),
               "Run the kernels of this instruction set from now on; the best is the default.");
    module.def("softmax", &softmax<float>, x, out, py::arg("scale"));
    module.def("softmax", &softmax<double>, x, out, py::arg("scale"));
    bind_buffers(module);
}
