#include "activations.h"

#include "dispatch.h"

namespace minitorch::MT_INSTRUCTION_SET {

template <template <typename> typename F, typename T>
static void forward(const Array* arrays) {
    map<T>(
        arrays[0].size, [](auto x) { return F<Compute<T>>().value(x); }, arrays[1].as<T>(),
        arrays[0].as<const T>());
}

template <template <typename> typename F, typename T>
static void backward(const Array* arrays) {
    map<T>(
        arrays[0].size, [](auto grad, auto x) { return grad * F<Compute<T>>().slope(x); },
        arrays[2].as<T>(), arrays[0].as<const T>(), arrays[1].as<const T>());
}

// The same, and f(x) besides.
template <template <typename> typename F, typename T>
static void backward_and_value(const Array* arrays) {
    using C = Compute<T>;
    const T *grad = arrays[0].as<const T>(), *x = arrays[1].as<const T>();
    T *dx = arrays[2].as<T>(), *value = arrays[3].as<T>();
    parallel_ranges(arrays[0].size, rows_per_piece(1), [&](long begin, long end) {
        for_each_vector<C>(end - begin, [&](long, auto get, auto put) {
            const ValueAndSlope<C> f = F<C>().both(get(x + begin));
            put(dx + begin, get(grad + begin) * f.slope);
            put(value + begin, f.value);
        });
    });
}

template <template <typename> typename F>
static void run(const Array* arrays, int count) {
    for (int i = 1; i < count; ++i)
        require(arrays[i].size == arrays[0].size && arrays[i].dtype == arrays[0].dtype,
                "activation: arrays that do not fit");
    by_dtype(arrays[0], "activation: expected float32, float64 or bfloat16", [&](auto kind) {
        if (count == 4)
            backward_and_value<F, decltype(kind)>(arrays);
        else if (count == 3)
            backward<F, decltype(kind)>(arrays);
        else
            forward<F, decltype(kind)>(arrays);
    });
}

// x, out, or grad, x, dx, or grad, x, dx, out: contiguous, of one size.
KERNEL(silu) {
    run<Silu>(arrays, num_arrays);
}
KERNEL(gelu_tanh) {
    run<GeluTanh>(arrays, num_arrays);
}

KERNEL(gelu) {
    run<Gelu>(arrays, num_arrays);
}

// gate, up, out, or grad, gate, up, dgate, dup: (rows, columns) with any stride between the rows.
KERNEL(swiglu) {
    const Array& gate = arrays[0];
    for (int i = 0; i < num_arrays; ++i) {
        const Array& x = arrays[i];
        require(x.ndim == 2 && x.shape[0] == gate.shape[0] && x.shape[1] == gate.shape[1] &&
                    x.dtype == gate.dtype && (x.stride(-1) == 1 || x.shape[1] <= 1),
                "swiglu: arrays that do not fit");
    }
    by_dtype(gate, "swiglu: expected float32, float64 or bfloat16", [&](auto kind) {
        using T = decltype(kind);
        const auto row = [=](int i, long r) { return arrays[i].as<T>() + r * arrays[i].stride(0); };
        const long columns = gate.shape[1];
        parallel_ranges(gate.shape[0], rows_per_piece(columns), [&](long begin, long end) {
            for (long r = begin; r < end; ++r) {
                if (num_arrays == 3)
                    swiglu(row(0, r), row(1, r), row(2, r), columns);
                else
                    swiglu_backward(row(0, r), row(1, r), row(2, r), row(3, r), row(4, r), columns);
            }
        });
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
