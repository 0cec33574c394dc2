// What the files that know Python share: NumPy, its arrays as kernels see them, and calls of kernels.
// Python's own interface will do for that; pybind11, which takes long to compile, is module.cpp's alone.

#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

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
#include <stdexcept>
#include <utility>

#include "array.h"

namespace minitorch {

// Thrown where Python's own error is set already.
struct PythonError {};
// Becomes a TypeError of Python's.
struct WrongType : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A reference that is given back, unless it is released: Python's object, or what could not be made.
class Owned {
public:
    explicit Owned(PyObject* object) : object_(object) {
        if (!object) throw PythonError();
    }
    Owned(Owned&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
    Owned& operator=(Owned&& other) noexcept {
        std::swap(object_, other.object_);
        return *this;
    }
    ~Owned() { Py_XDECREF(object_); }
    static Owned shared(PyObject* object) { return Owned(Py_NewRef(object)); }
    static Owned none() { return shared(Py_None); }
    PyObject* get() const { return object_; }
    PyObject* release() { return std::exchange(object_, nullptr); }

private:
    PyObject* object_;
};

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
    try {
        return f();
    } catch (const PythonError&) {
    } catch (const WrongType& error) {
        PyErr_SetString(PyExc_TypeError, error.what());
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    }
    return nullptr;
}

// Functions for PyModule_AddFunctions, up to an empty one.
extern PyMethodDef functions_as_it_is[];

}  // namespace minitorch
