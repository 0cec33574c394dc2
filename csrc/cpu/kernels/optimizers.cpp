#include "optimizers.h"

#include "dispatch.h"

namespace minitorch::MT_INSTRUCTION_SET {

// Elements in a piece of an array: all arrays' pieces are one loop.
constexpr long kPiece = 1 << 14;

static long count_pieces(const Array* arrays, int count) {
    long pieces = 0;
    for (int i = 0; i < count; ++i) pieces += (arrays[i].size + kPiece - 1) / kPiece;
    return pieces;
}

// f(number, array, begin, end) for each piece of arrays of these sizes.
template <typename F>
static void for_each_piece(const Array* arrays, int count, F f) {
    struct Piece {
        int array;
        long begin;
    };
    const long pieces = count_pieces(arrays, count);
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

template <typename T, typename Rule>
static void sweep(const Array* arrays, int count, const double* numbers) {
    for_each_piece(arrays, count, [=](long, int i, long begin, long end) {
        T* states[Rule::kStates + 1];
        for (int s = 0; s < Rule::kStates; ++s)
            states[s] = arrays[(3 + s) * count + i].template as<T>() + begin;
        const Array& copy = arrays[2 * count + i];
        apply_rule(Rule(numbers + 1 + Rule::kNumbers * i), T(numbers[0]),
                   arrays[i].as<T>() + begin, arrays[count + i].as<const T>() + begin,
                   copy ? copy.as<bfloat16>() + begin : nullptr, states, end - begin);
    });
}

// Lists of n arrays each: parameters, gradients, copies (bfloat16 beside float32 parameters, or
// None), and the rule's states. Then the scale of all gradients, and for each parameter the rule's
// numbers in the order of its constructor. All contiguous; all but the copies of one dtype, float32
// or float64.
template <template <typename> typename Rule>
static void run(const Array* arrays, int num_arrays, const double* numbers) {
    constexpr int lists = 3 + Rule<float>::kStates;
    const int count = num_arrays / lists;
    require(num_arrays == lists * count, "optimizer: expected lists of one length");
    if (!count) return;
    const Dtype dtype = arrays[0].dtype;
    for (int i = 0; i < num_arrays; ++i) {
        if (i / count == 2 && !arrays[i]) continue;
        const bool copy = i / count == 2;
        require(arrays[i].size == arrays[i % count].size &&
                    arrays[i].dtype == (copy ? Dtype::bfloat16 : dtype) &&
                    !(copy && dtype != Dtype::float32),
                "optimizer: arrays that do not fit");
    }
    if (dtype == Dtype::float32)
        sweep<float, Rule<float>>(arrays, count, numbers);
    else if (dtype == Dtype::float64)
        sweep<double, Rule<double>>(arrays, count, numbers);
    else
        fail("optimizer: expected float32 or float64");
}

KERNEL(adamw) {
    run<AdamW>(arrays, num_arrays, numbers);
}
KERNEL(sgd) {
    run<Descent>(arrays, num_arrays, numbers);
}
KERNEL(sgd_momentum) {
    run<Momentum>(arrays, num_arrays, numbers);
}
KERNEL(lion) {
    run<Lion>(arrays, num_arrays, numbers);
}
KERNEL(follow) {
    run<Follow>(arrays, num_arrays, numbers);
}

// out (1,) float64: the root of the sum of the squares of all elements of the arrays before it.
KERNEL(l2_norm) {
    const int count = num_arrays - 1;
    const long pieces = count_pieces(arrays, count);
    double* sums = scratch<double>(6, pieces + 1);
    for (int i = 0; i < count; ++i)
        by_dtype(arrays[i], "l2_norm: expected float32, float64 or bfloat16", [](auto) {});
    for_each_piece(arrays, count, [=](long number, int i, long begin, long end) {
        by_dtype(arrays[i], "", [&](auto kind) {
            sums[number] = sum_of_squares(arrays[i].as<const decltype(kind)>() + begin, end - begin);
        });
    });
    double total = 0;
    for (long i = 0; i < pieces; ++i) total += sums[i];
    arrays[count].as<double>()[0] = __builtin_sqrt(total);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
