// What the files that know Python share: NumPy, its arrays as kernels see them, and calls of kernels.

#pragma once

#include <pybind11/pybind11.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL minitorch_cpu_numpy
#if !defined(MT_IMPORTS_NUMPY)
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include "array.h"

namespace minitorch {

// The array of NumPy's as it lies, nothing copied. Throws TypeError where kernels cannot take it.
Array view(PyObject* array);

// A kernel: one function for each instruction set.
struct Implementations;
const Implementations& implementations(const char* name);

// Runs the kernel without the interpreter's lock.
void call(const Implementations& kernel, const Array* arrays, int num_arrays, const double* numbers);

// What f returns, or nullptr and a Python error for what it throws.
template <typename F>
PyObject* guarded(F f) {
    namespace py = pybind11;
    try {
        return f();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const py::builtin_exception& error) {
        error.set_error();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    }
    return nullptr;
}

void bind_as_it_is(pybind11::module_& module);

}  // namespace minitorch
