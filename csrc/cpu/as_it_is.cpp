// Products and norms that need no preparation, in one call from Python: what they check, the arrays
// of the result and the kernel. For a product of 16 by 16 the checks took longer in Python than all the
// rest; and what Python does has left the caches after each large product, and is slow to come back.
//
//     matmul_as_it_is(a, b, out)          a b, into out if it is not None
//     linear_as_it_is(x, weight, bias)    x weightᵀ + bias; bias may be None
//     linear_backward_as_it_is(grad, x, weight, residual, needs, wide)
//         (grad weight + residual, gradᵀ x, Σ grad), None for what `needs` does not want; of bfloat16
//         float32 what `wide` allows to be
//     norm_as_it_is(x, weight, bias, eps, centred)
//         (out, mean, rstd) of the last dimension; weight and bias may be None, mean is unless centred
//     norm_backward_as_it_is(grad, x, weight, mean, rstd, dsum)
//         (dx, dweight, dbias), dbias None without mean; weight, mean and dsum may be None
//     decode_blocks_as_it_is(x, ...)      what kernels/decoding.cpp takes but for out, and its numbers
//
// They return the result; or None where something has to be converted, copied, broadcast or refused,
// which minitorch/kernels/cpu/matmul.py, norms.py and decoding.py do.

#include "python.h"

#include <cstring>
#include <vector>

namespace minitorch {
namespace {

const Array kNone{nullptr, Dtype::none, 0, 0, {}, {}};

PyArrayObject* as_array(PyObject* object) {
    return PyArray_Check(object) ? reinterpret_cast<PyArrayObject*>(object) : nullptr;
}

bool takes(PyArrayObject* array) {
    if (!array || !PyArray_ISBEHAVED_RO(array) || PyArray_NDIM(array) > kMaxDims) return false;
    const long itemsize = PyArray_ITEMSIZE(array);
    for (int i = 0; i < PyArray_NDIM(array); ++i)
        if (PyArray_STRIDE(array, i) % itemsize) return false;
    return true;
}

bool same_dtype(PyArrayObject* a, PyArrayObject* b) {
    return PyArray_TYPE(a) == PyArray_TYPE(b);
}

bool takes_products(Dtype dtype) {
    return dtype == Dtype::float32 || dtype == Dtype::float64 || dtype == Dtype::bfloat16;
}

// Takes the reference to dtype.
Owned empty(int ndim, const npy_intp* shape, PyArray_Descr* dtype) {
    return Owned(
        PyArray_NewFromDescr(&PyArray_Type, dtype, ndim, shape, nullptr, nullptr, 0, nullptr));
}

Owned empty(int ndim, const npy_intp* shape, PyArrayObject* like) {
    PyArray_Descr* dtype = PyArray_DESCR(like);
    Py_INCREF(dtype);
    return empty(ndim, shape, dtype);
}

bool is_tuple_of(Py_ssize_t count, PyObject* object) {
    return PyTuple_CheckExact(object) && PyTuple_GET_SIZE(object) == count;
}

void product(const Array& a, const Array& b, const Array& out, const Array& bias,
             const Array& residual = kNone, const Array& row_sums = kNone) {
    static const Implementations& kernel = implementations("matmul");
    const Array arrays[] = {a, b, out, bias, residual, row_sums, kNone};
    constexpr double alpha = 1, accumulate = 0, activation = 0;
    const double numbers[] = {alpha, accumulate, activation};
    call(kernel, arrays, 7, numbers);
}

PyObject* matmul_as_it_is(PyObject*, PyObject* const* arguments, Py_ssize_t) {
    return guarded([=]() -> PyObject* {
        PyArrayObject *a = as_array(arguments[0]), *b = as_array(arguments[1]);
        if (!takes(a) || !takes(b) || PyArray_NDIM(a) != 2 || PyArray_NDIM(b) != 2 ||
            !same_dtype(a, b) || PyArray_DIM(a, 1) != PyArray_DIM(b, 0))
            Py_RETURN_NONE;
        const Array left = view(arguments[0]), right = view(arguments[1]);
        if (!takes_products(left.dtype)) Py_RETURN_NONE;
        const npy_intp shape[] = {left.shape[0], right.shape[1]};
        Owned out = Owned::shared(arguments[2]);
        if (out.get() == Py_None) {
            out = empty(2, shape, a);
        } else {
            PyArrayObject* given = as_array(out.get());
            if (!takes(given) || !PyArray_ISWRITEABLE(given) || !same_dtype(given, a) ||
                PyArray_NDIM(given) != 2 || PyArray_DIM(given, 0) != shape[0] ||
                PyArray_DIM(given, 1) != shape[1] ||
                (PyArray_STRIDE(given, 1) != PyArray_ITEMSIZE(given) && shape[1] > 1))
                Py_RETURN_NONE;
        }
        product(left, right, view(out.get()), kNone);
        return out.release();
    });
}

// (..., n) as (rows, n), of an array without gaps.
Array as_rows(const Array& x) {
    const long columns = x.dim(-1), rows = columns ? x.size / columns : 0;
    return {x.data, x.dtype, 2, x.size, {rows, columns}, {columns, 1}};
}

// a with rows and columns exchanged.
Array turned(Array a) {
    std::swap(a.shape[0], a.shape[1]);
    std::swap(a.strides[0], a.strides[1]);
    return a;
}

PyObject* linear_as_it_is(PyObject*, PyObject* const* arguments, Py_ssize_t) {
    return guarded([=]() -> PyObject* {
        PyArrayObject *x = as_array(arguments[0]), *weight = as_array(arguments[1]);
        PyArrayObject* bias = arguments[2] == Py_None ? nullptr : as_array(arguments[2]);
        const bool biased = arguments[2] != Py_None;
        if (!takes(x) || !takes(weight) || !PyArray_IS_C_CONTIGUOUS(x) || PyArray_NDIM(x) < 1 ||
            PyArray_SIZE(x) == 0 || PyArray_NDIM(weight) != 2 || !same_dtype(x, weight))
            Py_RETURN_NONE;
        const int ndim = PyArray_NDIM(x);
        if (PyArray_DIM(x, ndim - 1) != PyArray_DIM(weight, 1)) Py_RETURN_NONE;
        const npy_intp features = PyArray_DIM(weight, 0);
        if (biased && (!takes(bias) || !PyArray_IS_C_CONTIGUOUS(bias) || !same_dtype(x, bias) ||
                       PyArray_NDIM(bias) != 1 || PyArray_DIM(bias, 0) != features))
            Py_RETURN_NONE;
        const Array right = turned(view(arguments[1]));
        if (!takes_products(right.dtype)) Py_RETURN_NONE;
        npy_intp shape[kMaxDims];
        std::copy_n(PyArray_DIMS(x), ndim, shape);
        shape[ndim - 1] = features;
        Owned out = empty(ndim, shape, x);
        product(as_rows(view(arguments[0])), right, as_rows(view(out.get())),
                biased ? view(arguments[2]) : kNone);
        return out.release();
    });
}

PyObject* linear_backward_as_it_is(PyObject*, PyObject* const* arguments, Py_ssize_t) {
    return guarded([=]() -> PyObject* {
        PyArrayObject *grad = as_array(arguments[0]), *x = as_array(arguments[1]);
        PyArrayObject* weight = as_array(arguments[2]);
        PyArrayObject* residual = arguments[3] == Py_None ? nullptr : as_array(arguments[3]);
        PyObject *needs = arguments[4], *wide = arguments[5];
        if (!takes(grad) || !takes(x) || !takes(weight) || !PyArray_IS_C_CONTIGUOUS(grad) ||
            !PyArray_IS_C_CONTIGUOUS(x) || PyArray_NDIM(grad) < 1 || PyArray_NDIM(x) < 1 ||
            PyArray_SIZE(grad) == 0 || PyArray_SIZE(x) == 0 || PyArray_NDIM(weight) != 2 ||
            !same_dtype(grad, x) || !same_dtype(weight, x))
            Py_RETURN_NONE;
        if (arguments[3] != Py_None &&
            (!takes(residual) || !PyArray_IS_C_CONTIGUOUS(residual) || !same_dtype(residual, x) ||
             PyArray_SIZE(residual) != PyArray_SIZE(x)))
            Py_RETURN_NONE;
        if (!is_tuple_of(3, needs) || !is_tuple_of(3, wide)) Py_RETURN_NONE;
        const Array grads = as_rows(view(arguments[0])), rows = as_rows(view(arguments[1]));
        const Array matrix = view(arguments[2]);
        if (grads.shape[1] != matrix.shape[0] || rows.shape[1] != matrix.shape[1] ||
            grads.shape[0] != rows.shape[0])
            Py_RETURN_NONE;
        const auto wanted = [=](int i) { return PyTuple_GET_ITEM(needs, i) == Py_True; };
        const bool half = rows.dtype == Dtype::bfloat16;
        const auto widened = [=](int i) { return half && PyTuple_GET_ITEM(wide, i) == Py_True; };
        if (!takes_products(rows.dtype) || (half && wanted(2) && !widened(2)) ||
            (residual && widened(0)) || (wanted(2) && !wanted(1)))
            Py_RETURN_NONE;
        Owned out[3] = {Owned::none(), Owned::none(), Owned::none()};
        const auto make = [&](int i, int ndim, const npy_intp* shape) {
            out[i] = widened(i) ? empty(ndim, shape, PyArray_DescrFromType(NPY_FLOAT))
                                : empty(ndim, shape, x);
            return view(out[i].get());
        };
        if (wanted(0))
            product(grads, matrix, as_rows(make(0, PyArray_NDIM(x), PyArray_DIMS(x))), kNone,
                    residual ? as_rows(view(arguments[3])) : kNone);
        if (wanted(1)) {
            Array sums = kNone;
            if (wanted(2)) {
                sums = make(2, 1, PyArray_DIMS(weight));
                std::memset(sums.data, 0, PyArray_NBYTES(reinterpret_cast<PyArrayObject*>(out[2].get())));
            }
            product(turned(grads), rows, make(1, 2, PyArray_DIMS(weight)), kNone, kNone, sums);
        }
        return PyTuple_Pack(3, out[0].get(), out[1].get(), out[2].get());
    });
}

// A row of weights, or None, for rows like those of x.
bool of_rows(PyObject* object, PyArrayObject* x) {
    if (object == Py_None) return true;
    PyArrayObject* array = as_array(object);
    return takes(array) && PyArray_IS_C_CONTIGUOUS(array) && PyArray_NDIM(array) == 1 &&
           PyArray_DIM(array, 0) == PyArray_DIM(x, PyArray_NDIM(x) - 1) && same_dtype(array, x);
}

// An array with so many elements, of x's type, without gaps.
bool is_like(PyObject* object, PyArrayObject* x, npy_intp size) {
    PyArrayObject* array = as_array(object);
    return takes(array) && PyArray_IS_C_CONTIGUOUS(array) && PyArray_SIZE(array) == size &&
           same_dtype(array, x);
}

bool has_rows(PyArrayObject* x) {
    return takes(x) && PyArray_IS_C_CONTIGUOUS(x) && PyArray_NDIM(x) >= 1 && PyArray_SIZE(x) > 0 &&
           (PyArray_TYPE(x) == NPY_FLOAT || PyArray_TYPE(x) == NPY_DOUBLE);
}

Array view_or_none(PyObject* object) {
    return object == Py_None ? kNone : view(object);
}

PyObject* norm_as_it_is(PyObject*, PyObject* const* arguments, Py_ssize_t) {
    return guarded([=]() -> PyObject* {
        static const Implementations& layer = implementations("layer_norm");
        static const Implementations& rms = implementations("rms_norm");
        PyArrayObject* x = as_array(arguments[0]);
        if (!has_rows(x) || !of_rows(arguments[1], x) || !of_rows(arguments[2], x)) Py_RETURN_NONE;
        const bool centred = arguments[4] == Py_True;
        const double eps = PyFloat_AsDouble(arguments[3]);
        if (PyErr_Occurred()) throw PythonError();
        const auto make = [=](int ndim) {
            return empty(ndim, PyArray_DIMS(x), x);
        };
        const Owned out = make(PyArray_NDIM(x)), rstd = make(PyArray_NDIM(x) - 1);
        const Owned mean = centred ? make(PyArray_NDIM(x) - 1) : Owned::none();
        const Array arrays[] = {as_rows(view(arguments[0])), kNone, view_or_none(arguments[1]),
                                view_or_none(arguments[2]), as_rows(view(out.get())), kNone,
                                view_or_none(mean.get()), view(rstd.get())};
        call(centred ? layer : rms, arrays, 8, &eps);
        return PyTuple_Pack(3, out.get(), mean.get(), rstd.get());
    });
}

PyObject* norm_backward_as_it_is(PyObject*, PyObject* const* arguments, Py_ssize_t) {
    return guarded([=]() -> PyObject* {
        static const Implementations& layer = implementations("layer_norm_backward");
        static const Implementations& rms = implementations("rms_norm_backward");
        PyArrayObject* x = as_array(arguments[1]);
        const bool centred = arguments[3] != Py_None, joins = arguments[5] != Py_None;
        if (!has_rows(x) || !of_rows(arguments[2], x)) Py_RETURN_NONE;
        const npy_intp size = PyArray_SIZE(x), last = PyArray_DIM(x, PyArray_NDIM(x) - 1);
        if (!is_like(arguments[0], x, size) || !is_like(arguments[4], x, size / last) ||
            (centred && !is_like(arguments[3], x, size / last)) ||
            (joins && !is_like(arguments[5], x, size)))
            Py_RETURN_NONE;
        const auto make = [=](int ndim, const npy_intp* shape) {
            return empty(ndim, shape, x);
        };
        const Owned dx = make(PyArray_NDIM(x), PyArray_DIMS(x)), dweight = make(1, &last);
        const Owned dbias = centred ? make(1, &last) : Owned::none();
        const Array arrays[] = {as_rows(view(arguments[0])), as_rows(view(arguments[1])),
                                view_or_none(arguments[2]), view_or_none(arguments[3]),
                                view(arguments[4]),
                                joins ? as_rows(view(arguments[5])) : kNone,
                                as_rows(view(dx.get())), view(dweight.get()),
                                view_or_none(dbias.get())};
        call(centred ? layer : rms, arrays, 9, nullptr);
        return PyTuple_Pack(3, dx.get(), dweight.get(), dbias.get());
    });
}

PyObject* decode_blocks_as_it_is(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    return guarded([=]() -> PyObject* {
        constexpr Py_ssize_t kBlock = 14, kCaches = 12;  // arrays of a block, the caches' the last
        constexpr Py_ssize_t kLast = 3;                  // a norm's after the blocks, and the head's
        static const Implementations& kernel = implementations("decode_blocks");
        const Py_ssize_t inputs = count - 2, end_of_blocks = inputs - kLast;
        PyArrayObject* x = as_array(arguments[0]);
        if (end_of_blocks <= 1 || (end_of_blocks - 1) % kBlock || !takes(x) || PyArray_NDIM(x) != 3 ||
            PyArray_SIZE(x) == 0)
            Py_RETURN_NONE;
        std::vector<Array> arrays(inputs + 1, kNone);
        for (Py_ssize_t i = 0; i < inputs; ++i) {
            const bool cache = i > 0 && i < end_of_blocks && (i - 1) % kBlock >= kCaches;
            if (arguments[i] == Py_None && i > 0 && !cache) continue;
            PyArrayObject* array = as_array(arguments[i]);
            if (!takes(array) || !same_dtype(array, x)) Py_RETURN_NONE;
            const bool rows_lie = PyArray_NDIM(array) == 4 && PyArray_DIM(array, 3) > 0 &&
                                  PyArray_STRIDE(array, 3) == PyArray_ITEMSIZE(array);
            if (cache ? !rows_lie || !PyArray_ISWRITEABLE(array) : !PyArray_IS_C_CONTIGUOUS(array))
                Py_RETURN_NONE;
            arrays[i] = view(arguments[i]);
        }
        if (!takes_products(arrays[0].dtype) || PyArray_DIM(x, 1) != 1) Py_RETURN_NONE;
        const Array& head = arrays[inputs - 1];
        if (head && head.ndim != 2) Py_RETURN_NONE;
        npy_intp shape[] = {PyArray_DIM(x, 0), 1, head ? head.shape[0] : PyArray_DIM(x, 2)};
        Owned out = empty(3, shape, x);
        arrays[0] = as_rows(arrays[0]);
        arrays[inputs] = as_rows(view(out.get()));
        const double numbers[] = {PyFloat_AsDouble(arguments[inputs]),
                                  PyFloat_AsDouble(arguments[inputs + 1])};
        if (PyErr_Occurred()) throw PythonError();
        call(kernel, arrays.data(), static_cast<int>(arrays.size()), numbers);
        return out.release();
    });
}

using Function = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);

template <Function function, Py_ssize_t least, Py_ssize_t most = least>
PyObject* counted(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
    if (count >= least && count <= most) return function(self, arguments, count);
    PyErr_Format(PyExc_TypeError, "expected %zd arguments; got %zd", least, count);
    return nullptr;
}

template <Function function, Py_ssize_t least, Py_ssize_t most = least>
PyMethodDef method(const char* name, const char* doc) {
    const auto fast = reinterpret_cast<void (*)()>(counted<function, least, most>);
    return {name, reinterpret_cast<PyCFunction>(fast), METH_FASTCALL, doc};
}

}  // namespace

PyMethodDef functions_as_it_is[] = {
    method<matmul_as_it_is, 3>(
        "matmul_as_it_is", "a b into out, if nothing has to be prepared; else None"),
    method<linear_as_it_is, 3>(
        "linear_as_it_is", "x weightᵀ + bias, if nothing has to be prepared; else None"),
    method<linear_backward_as_it_is, 6>(
        "linear_backward_as_it_is", "linear's gradients, if nothing has to be prepared; else None"),
    method<norm_as_it_is, 5>(
        "norm_as_it_is", "a norm of the last dimension, if nothing has to be prepared; else None"),
    method<norm_backward_as_it_is, 6>(
        "norm_backward_as_it_is", "its gradients, if nothing has to be prepared; else None"),
    method<decode_blocks_as_it_is, 3, PY_SSIZE_T_MAX>(
        "decode_blocks_as_it_is", "a token through blocks, if nothing has to be prepared; else None"),
    {}};

}  // namespace minitorch
