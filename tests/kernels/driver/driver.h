// What the checks of this folder share: arrays that know where they end, how a kernel is called by
// its name, and how numbers are compared.

#pragma once

#include "array.h"
#include "kernels/dispatch.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <vector>

using namespace minitorch;
using minitorch::MT_INSTRUCTION_SET::bfloat16;
template <typename T>
using Compute = minitorch::MT_INSTRUCTION_SET::Compute<T>;
using minitorch::MT_INSTRUCTION_SET::load_one;
using minitorch::MT_INSTRUCTION_SET::store_one;

template <typename T>
constexpr Dtype kDtype = std::is_same_v<T, float>    ? Dtype::float32
                         : std::is_same_v<T, double> ? Dtype::float64
                         : std::is_same_v<T, long>   ? Dtype::int64
                                                     : Dtype::bfloat16;

// An array that owns its memory, exactly as much as it has elements, so that a sanitizer sees a
// read or a write beside it. Filled with numbers in [-scale, scale].
template <typename T>
struct Owned {
    std::vector<T> memory;
    Array array{};

    Owned(std::initializer_list<long> shape, double scale = 1) {
        array.ndim = static_cast<int>(shape.size());
        array.size = 1;
        array.dtype = kDtype<T>;
        std::copy(shape.begin(), shape.end(), array.shape);
        for (int i = array.ndim - 1; i >= 0; --i) {
            array.strides[i] = array.size;
            array.size *= array.shape[i];
        }
        memory.resize(array.size);
        array.data = memory.data();
        for (long i = 0; i < array.size; ++i) set(i, scale * (std::rand() % 2001 - 1000) / 1000.0);
    }
    double operator[](long i) const {
        if constexpr (std::is_same_v<T, long>)
            return memory[i];
        else
            return load_one(&memory[i]);
    }
    void set(long i, double value) {
        if constexpr (std::is_same_v<T, long>)
            memory[i] = static_cast<long>(value);
        else
            store_one(&memory[i], static_cast<Compute<T>>(value));
    }
};

inline const Array kNone{nullptr, Dtype::none, 0, 0, {}, {}};

// Calls the kernel of this name.
void run(const char* name, std::vector<Array> arrays, std::vector<double> numbers = {});

// bound: in float32, of numbers up to 16, and in proportion beyond; times more for bfloat16.
template <typename T>
void close(const char* what, double found, double expected, double bound) {
    bound *= std::max(1.0, std::abs(expected) / 16);
    if (std::is_same_v<T, bfloat16>) bound *= 1000;
    if (!(std::abs(found - expected) <= bound)) {
        std::printf("%s: %g, expected %g\n", what, found, expected);
        std::exit(1);
    }
}

void check_products();
void check_attentions();
void check_rows();
