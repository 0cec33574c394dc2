// The Python modules of the CUDA kernels: minitorch._cuda for a GPU, and minitorch._simt and
// minitorch._simt_checked for the emulator. Each kernel is a function of a stream, then of arrays and
// numbers by position:
//
//     softmax(stream, x, out, 1.0)
//
// An array is a tuple (address, dtype, shape, strides in elements), dtype by its number in the enum
// Dtype; None is no array; a list counts as so many arguments. Calls do not wait for the device.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "device.h"
#ifndef __CUDACC__
#include "../simt/findings.h"
#include "../simt/machine.h"
#include "../simt/traffic.h"
#endif

namespace py = pybind11;

namespace minitorch {
namespace {

std::map<std::string, DeviceKernel>& table() {
    static std::map<std::string, DeviceKernel> kernels;
    return kernels;
}

struct Call {
    std::vector<Array> arrays;
    std::vector<double> numbers;

    void take(const py::handle& argument) {
        if (py::isinstance<py::tuple>(argument)) {
            const auto fields = py::reinterpret_borrow<py::tuple>(argument);
            const auto shape = fields[2].cast<std::vector<long>>();
            const auto strides = fields[3].cast<std::vector<long>>();
            if (shape.size() > kMaxDims || shape.size() != strides.size())
                throw py::type_error("a kernel takes arrays of at most 8 dimensions");
            Array array{reinterpret_cast<void*>(fields[0].cast<uintptr_t>()),
                        static_cast<Dtype>(fields[1].cast<int>()), int(shape.size()), 1, {}, {}};
            for (size_t i = 0; i < shape.size(); ++i) {
                array.shape[i] = shape[i];
                array.strides[i] = strides[i];
                array.size *= shape[i];
            }
            arrays.push_back(array);
        } else if (argument.is_none()) {
            arrays.push_back({nullptr, Dtype::none, 0, 0, {}, {}});
        } else if (py::isinstance<py::list>(argument)) {
            for (const py::handle item : argument) take(item);
        } else {
            numbers.push_back(argument.cast<double>());
        }
    }
};

#ifdef __CUDACC__

void check_launches(const char* name) {
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess)
        throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
}

struct Watched {
    explicit Watched(const Call&) {}
};

#else

void check_launches(const char* name) {
    if (cudaGetLastError() != cudaSuccess)
        throw std::runtime_error(std::string(name) + ": the launch failed in the emulator");
}

size_t bytes_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::float64:
        case Dtype::int64: return 8;
        case Dtype::float32:
        case Dtype::int32: return 4;
        case Dtype::bfloat16:
        case Dtype::float16: return 2;
        default: return 1;
    }
}

// What the arrays of a call occupy is, while it lasts, all the memory that the device has. Arrays that
// overlap, as parts of one do, are one memory.
class Watched {
public:
    explicit Watched(const Call& call) {
        if (!simt::checking) return;
        struct Range {
            const char *begin, *end;
            std::string name;
        };
        std::vector<Range> ranges;
        for (size_t i = 0; i < call.arrays.size(); ++i) {
            const Array& array = call.arrays[i];
            if (!array.data || !array.size) continue;
            long low = 0, high = 1;
            for (int d = 0; d < array.ndim; ++d) {
                const long reach = (array.shape[d] - 1) * array.strides[d];
                (reach < 0 ? low : high) += reach;
            }
            const auto* data = static_cast<const char*>(array.data);
            const long size = long(bytes_of(array.dtype));
            ranges.push_back({data + low * size, data + high * size, "array " + std::to_string(i)});
        }
        std::sort(ranges.begin(), ranges.end(),
                  [](const Range& a, const Range& b) { return a.begin < b.begin; });
        for (size_t i = 0; i < ranges.size();) {
            Range whole = ranges[i++];
            for (; i < ranges.size() && ranges[i].begin < whole.end; ++i) {
                whole.end = std::max(whole.end, ranges[i].end);
                whole.name += ", " + ranges[i].name;
            }
            simt::register_memory(whole.begin, size_t(whole.end - whole.begin), whole.name, true);
            memories_.push_back(whole.begin);
        }
    }
    ~Watched() {
        for (const void* memory : memories_) simt::forget_memory(memory);
    }

private:
    std::vector<const void*> memories_;
};

void bind_emulator(py::module_& extension) {
    extension.def("findings", [] { return simt::findings_as_json(); },
               "What the check build has found since the last clear_findings(), as JSON.");
    extension.def("clear_findings", simt::clear_findings);
    extension.def("is_checked", [] { return simt::checking; },
               "Whether the kernels' accesses to memory are checked.");
    extension.def(
        "set_schedule",
        [](const std::string& order, uint64_t seed, unsigned processors,
           const std::vector<unsigned>& choices, int capability, int patience) {
            simt::options() = {order == "reversed" ? simt::Order::reversed
                               : order == "random" ? simt::Order::random
                                                   : simt::Order::forward,
                               seed, processors, choices, capability, patience};
        },
        py::arg("order"), py::arg("seed") = 0, py::arg("processors") = 0,
        py::arg("choices") = std::vector<unsigned>{}, py::arg("capability") = 90,
        py::arg("patience") = 0,
        "In which order threads that could all run do: forward, reversed or random, after `choices`; "
        "of which compute capability the device says it is; and for how many milliseconds they wait "
        "for what another process writes.");
    extension.def(
        "count_traffic",
        [](bool on) {
            simt::counting = on;
            simt::clear_traffic();
        },
        "Begin to count what accesses cost, from nothing, or stop.");
    extension.def("traffic", [] { return simt::traffic_as_json(); },
               "What the check build has counted, by line, as JSON.");
}

#endif

void bind_kernels(py::module_& extension) {
    for (const auto& [name, kernel] : table())
        extension.def(name.c_str(), [name = name, kernel = kernel](uintptr_t stream, const py::args& arguments) {
            Call call;
            for (const py::handle argument : arguments) call.take(argument);
            py::gil_scoped_release unlocked;
            const Watched watched(call);
            kernel(call.arrays.data(), int(call.arrays.size()), call.numbers.data(),
                   reinterpret_cast<cudaStream_t>(stream));
            check_launches(name.c_str());
        });
}

void bind(py::module_& extension) {
    extension.doc() = "minitorch's CUDA kernels (csrc/cuda)";
    bind_kernels(extension);
#ifndef __CUDACC__
    bind_emulator(extension);
#endif
}

}  // namespace

DeviceEntry::DeviceEntry(const char* name, DeviceKernel kernel) { table()[name] = kernel; }

void fail(const char* message) { throw std::invalid_argument(message); }

}  // namespace minitorch

#ifdef __CUDACC__
PYBIND11_MODULE(_cuda, extension) {
    minitorch::bind(extension);
}
#else  // in both of the emulator's, which differ in how the kernels are compiled
PYBIND11_MODULE(_simt, extension) {
    minitorch::bind(extension);
}
PYBIND11_MODULE(_simt_checked, extension) {
    minitorch::bind(extension);
}
#endif
