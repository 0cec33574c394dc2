#include "optimizers.h"

namespace minitorch::MT_INSTRUCTION_SET {

// Elements in a piece of an array: all arrays' pieces are one loop.
constexpr long kPiece = 1 << 14;

// f(array, begin, end) for each piece of arrays of these sizes; returns how many there are.
template <typename F>
static void for_each_piece(const Array* arrays, int count, F f) {
    long pieces = 0;
    for (int i = 0; i < count; ++i) pieces += (arrays[i].size + kPiece - 1) / kPiece;
    struct Piece {
        int array;
        long begin;
    };
    Piece* table = scratch<Piece>(5, pieces + 1);
    long next = 0;
    for (int i = 0; i < count; ++i)
        for (long begin = 0; begin < arrays[i].size; begin += kPiece) table[next++] = {i, begin};
    parallel_for(pieces, [=](long number) {
        const auto [i, begin] = table[number];
        const long end = begin + kPiece < arrays[i].size ? begin + kPiece : arrays[i].size;
        f(number, i, begin, end);
    });
}

template <typename T>
static void adamw(const Array* arrays, int count, const double* numbers) {
    for_each_piece(arrays, count, [=](long, int i, long begin, long end) {
        const double* n = numbers + 7 * i;
        const AdamW<T> step{T(n[0]), T(n[1]), T(n[2]), T(n[3]), T(n[4]),
                            T(n[5]), T(n[6]), T(1 - n[1]), T(1 - n[2])};
        step(arrays[i].as<T>() + begin, arrays[count + i].as<T>() + begin,
             arrays[2 * count + i].as<T>() + begin, arrays[3 * count + i].as<T>() + begin,
             end - begin);
    });
}

// params, grads, m, v: n arrays each; then for each parameter scale, beta1, beta2, keep, rate,
// unbias, eps. All contiguous and of one dtype, float32 or float64.
KERNEL(adamw) {
    const int count = num_arrays / 4;
    require(num_arrays == 4 * count, "adamw: expected four lists of one length");
    if (!count) return;
    for (int i = 0; i < num_arrays; ++i)
        require(arrays[i].size == arrays[i % count].size && arrays[i].dtype == arrays[0].dtype,
                "adamw: arrays that do not fit");
    if (arrays[0].dtype == Dtype::float32)
        adamw<float>(arrays, count, numbers);
    else if (arrays[0].dtype == Dtype::float64)
        adamw<double>(arrays, count, numbers);
    else
        fail("adamw: expected float32 or float64");
}

// out (1,) float64: the root of the sum of the squares of all elements of the arrays before it.
KERNEL(l2_norm) {
    const int count = num_arrays - 1;
    long pieces = 0;
    for (int i = 0; i < count; ++i) pieces += (arrays[i].size + kPiece - 1) / kPiece;
    double* sums = scratch<double>(6, pieces + 1);
    for_each_piece(arrays, count, [=](long number, int i, long begin, long end) {
        switch (arrays[i].dtype) {
            case Dtype::float32:
                sums[number] = sum_of_squares(arrays[i].as<const float>() + begin, end - begin);
                break;
            case Dtype::float64:
                sums[number] = sum_of_squares(arrays[i].as<const double>() + begin, end - begin);
                break;
            case Dtype::bfloat16:
                sums[number] = sum_of_squares(arrays[i].as<const bfloat16>() + begin, end - begin);
                break;
            default:
                sums[number] = __builtin_nan("");
        }
    });
    double total = 0;
    for (long i = 0; i < pieces; ++i) total += sums[i];
    arrays[count].as<double>()[0] = __builtin_sqrt(total);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
