// The Python module minitorch._cpu: each kernel is a function of arrays and numbers by position.
//
//     softmax(x, out, 1.0)
//
// An argument may be an array, a number, None (no array), or a list of arrays, which counts as so
// many. Arrays are taken as they are, with their strides, nothing is copied or converted; a kernel
// writes into arrays that Python allocated. Calls release the interpreter lock.
//
// For every kernel the table holds one function per instruction set, and one set is in use at a time.
// A set that adds nothing to a kernel is not compiled for it: the next set's function serves.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#define MT_IMPORTS_NUMPY
#include "python.h"

#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "buffers.h"
#include "processor.h"
#include "threads.h"

namespace py = pybind11;

namespace minitorch {
struct Implementations {
    Kernel by_set[kInstructionSetCount] = {};
};

namespace {

std::map<std::string, Implementations>& table() {
    static std::map<std::string, Implementations> kernels;
    return kernels;
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (int i = 0; i < kInstructionSetCount; ++i)
        if (supports(i)) names.push_back(kInstructionSets[i]);
    return names;
}

void use_instruction_set(const std::string& wanted) {
    for (int i = 0; i < kInstructionSetCount; ++i)
        if (kInstructionSets[i] == wanted && supports(i)) return use_set(i);
    throw std::invalid_argument("use_instruction_set: this processor does not support '" + wanted +
                                "'; see instruction_sets()");
}

int bfloat16_type = -1;

Dtype dtype_of(PyArrayObject* array) {
    const int type = PyArray_TYPE(array);
    if (type == NPY_FLOAT) return Dtype::float32;
    if (type == NPY_DOUBLE) return Dtype::float64;
    if (type == bfloat16_type) return Dtype::bfloat16;
    if (type == NPY_HALF) return Dtype::float16;
    if (PyTypeNum_ISSIGNED(type) && PyArray_ITEMSIZE(array) == 8) return Dtype::int64;
    if (PyTypeNum_ISSIGNED(type) && PyArray_ITEMSIZE(array) == 4) return Dtype::int32;
    if (type == NPY_UBYTE) return Dtype::uint8;
    if (type == NPY_BOOL) return Dtype::boolean;
    throw WrongType("a kernel was given an array of a dtype that kernels do not take");
}

}  // namespace

Array view(PyObject* object) {
    auto* array = reinterpret_cast<PyArrayObject*>(object);
    const int ndim = PyArray_NDIM(array);
    const long itemsize = PyArray_ITEMSIZE(array);
    if (ndim > kMaxDims) throw WrongType("a kernel takes arrays of at most 8 dimensions");
    if (!PyArray_ISALIGNED(array) || !PyArray_ISNOTSWAPPED(array))
        throw WrongType("a kernel takes aligned arrays in the machine's byte order");
    Array out{PyArray_DATA(array), dtype_of(array), ndim, PyArray_SIZE(array), {}, {}};
    for (int i = 0; i < ndim; ++i) {
        out.shape[i] = PyArray_DIM(array, i);
        const long stride = PyArray_STRIDE(array, i);
        if (stride % itemsize) throw WrongType("a kernel takes strides of whole elements");
        out.strides[i] = stride / itemsize;
    }
    return out;
}

const Implementations& implementations(const char* name) {
    return table().at(name);
}

void call(const Implementations& kernel, const Array* arrays, int num_arrays, const double* numbers) {
    struct Unlocked {
        PyThreadState* state = PyEval_SaveThread();
        ~Unlocked() { PyEval_RestoreThread(state); }
    } unlocked;
    kernel.by_set[set_in_use()](arrays, num_arrays, numbers);
}

namespace {

struct Arguments {
    std::vector<Array> arrays;
    std::vector<double> numbers;

    void take(PyObject* argument) {
        if (PyArray_Check(argument)) {
            arrays.push_back(view(argument));
        } else if (PyFloat_CheckExact(argument)) {
            numbers.push_back(PyFloat_AS_DOUBLE(argument));
        } else if (argument == Py_None) {
            arrays.push_back({nullptr, Dtype::none, 0, 0, {}, {}});
        } else if (PyList_CheckExact(argument)) {
            for (Py_ssize_t i = 0; i < PyList_GET_SIZE(argument); ++i)
                take(PyList_GET_ITEM(argument, i));
        } else {
            numbers.push_back(PyFloat_AsDouble(argument));
            if (PyErr_Occurred()) throw PythonError();
        }
    }
};

PyObject* call_kernel(PyObject* capsule, PyObject* const* arguments, Py_ssize_t count) {
    return guarded([=]() -> PyObject* {
        const auto* kernel =
            static_cast<const Implementations*>(PyCapsule_GetPointer(capsule, nullptr));
        thread_local Arguments taken;  // keeps its memory: kernels do not call kernels
        taken.arrays.clear();
        taken.numbers.clear();
        for (Py_ssize_t i = 0; i < count; ++i) taken.take(arguments[i]);
        call(*kernel, taken.arrays.data(), static_cast<int>(taken.arrays.size()),
             taken.numbers.data());
        Py_RETURN_NONE;
    });
}

void bind_buffers(py::module_& module) {
    find_numpy_allocator();
    const auto recycle = [](bool on, size_t limit) {
        try {
            recycle_buffers(on, limit);
        } catch (const PythonError&) {
            throw py::error_already_set();
        }
    };
    module.def("recycle_buffers", recycle, py::arg("on"), py::arg("limit"));
    module.def("release_buffers", &release_buffers);
    module.def("buffer_statistics", [] {
        const BufferStatistics now = buffer_statistics();
        py::dict out;
        out["idle_bytes"] = now.idle_bytes;
        out["limit_bytes"] = now.limit_bytes;
        out["reused"] = now.reused;
        out["fresh"] = now.fresh;
        return out;
    });
}

void bind_kernels(py::module_& module) {
    for (auto& [name, kernel] : table()) {
        for (int i = kInstructionSetCount - 1; i-- > 0;)
            if (!kernel.by_set[i]) kernel.by_set[i] = kernel.by_set[i + 1];
        auto* method = new PyMethodDef{  // lives as long as the module, that is, the process
            name.c_str(), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call_kernel)),
            METH_FASTCALL, nullptr};
        const py::capsule self(&kernel, static_cast<const char*>(nullptr));
        module.attr(name.c_str()) =
            py::reinterpret_steal<py::object>(PyCFunction_New(method, self.ptr()));
    }
}

}  // namespace

Entry::Entry(const char* instruction_set, const char* name, Kernel kernel) {
    for (int i = 0; i < kInstructionSetCount; ++i)
        if (kInstructionSets[i] == std::string_view(instruction_set))
            table()[name].by_set[i] = kernel;
}

void fail(const char* message) {
    throw std::invalid_argument(message);
}

}  // namespace minitorch

PYBIND11_MODULE(_cpu, module) {
    using namespace minitorch;
    if (_import_array() < 0) throw py::error_already_set();
    module.doc() = "minitorch's kernels in C++ (csrc/cpu), and its recycling of buffers";
    const py::object bfloat16 = py::module_::import("ml_dtypes").attr("bfloat16");
    bfloat16_type = py::module_::import("numpy").attr("dtype")(bfloat16).attr("num").cast<int>();
    module.def("instruction_sets", &instruction_sets,
               "The instruction sets that this processor supports, best first.");
    module.def("use_instruction_set", &use_instruction_set, py::arg("name"),
               "Run the kernels of this instruction set from now on; the best is the default.");
    module.def("num_threads", &num_threads, "How many threads a kernel may use.");
    module.def("set_num_threads", &set_num_threads, py::arg("count"),
               "Let kernels use so many threads.");
    bind_kernels(module);
    if (PyModule_AddFunctions(module.ptr(), functions_as_it_is)) throw py::error_already_set();
    bind_buffers(module);
}
