#include "optimizers.h"

#include "dispatch.h"
#include "rows.h"

namespace minitorch::MT_INSTRUCTION_SET {

// Elements in a piece of an array: all arrays' pieces are one loop.
constexpr long kPiece = 1 << 14;

// Of whole rows, where the gradient is of some rows alone.
static long piece_of(const Array& grad, const Array& rows) {
    if (!rows || !rows.size) return kPiece;
    const long width = grad.size / rows.size;
    return width > kPiece ? width : kPiece / width * width;
}

// f(number, array, begin, end) for each piece of arrays, `piece(i)` elements of array i each.
template <typename Piece, typename F>
static void for_each_piece(const Array* arrays, int count, Piece piece, F f) {
    struct Place {
        int array;
        long begin;
    };
    long pieces = 0, next = 0;
    for (int i = 0; i < count; ++i) pieces += (arrays[i].size + piece(i) - 1) / piece(i);
    Place* table = scratch<Place>(5, pieces + 1);
    for (int i = 0; i < count; ++i)
        for (long begin = 0; begin < arrays[i].size; begin += piece(i)) table[next++] = {i, begin};
    parallel_for(pieces, [=](long number) {
        const auto [i, begin] = table[number];
        const long end = begin + piece(i);
        f(number, i, begin, end < arrays[i].size ? end : arrays[i].size);
    });
}

template <typename T, typename Rule>
static void sweep(const Array* arrays, int count, const double* numbers) {
    const Array *grads = arrays + count, *copies = grads + count, *rows = copies + count;
    const auto piece = [=](int i) { return piece_of(grads[i], rows[i]); };
    for_each_piece(grads, count, piece, [=](long, int i, long begin, long end) {
        const Rule rule(numbers + 1 + Rule::kNumbers * i);
        const auto update = [&](long at, long from, long size) {
            T* states[Rule::kStates + 1];
            for (int s = 0; s < Rule::kStates; ++s)
                states[s] = rows[(1 + s) * count + i].template as<T>() + at;
            bfloat16* copy = copies[i] ? copies[i].as<bfloat16>() + at : nullptr;
            apply_rule(rule, T(numbers[0]), arrays[i].as<T>() + at, grads[i].as<const T>() + from,
                       copy, states, size);
        };
        if (!rows[i]) return update(begin, begin, end - begin);
        const long width = grads[i].size / rows[i].size;
        const int64_t* row = rows[i].as<int64_t>() + begin / width;
        for (long from = begin; from < end; from += width, ++row) {
            if (from + width < end) {  // a row is short, and the next one may be far
                prefetch(arrays[i].as<T>() + row[1] * width, width);
                for (int s = 0; s < Rule::kStates; ++s)
                    prefetch(rows[(1 + s) * count + i].template as<T>() + row[1] * width, width);
            }
            update(*row * width, from, width);
        }
    });
}

// Whether rows (n,) are some of those of a parameter in ascending order, and so many grad has.
static bool rows_fit(const Array& param, const Array& grad, const Array& rows) {
    if (rows.dtype != Dtype::int64) return false;
    if (!rows.size) return !grad.size;
    if (grad.size % rows.size) return false;
    const long width = grad.size / rows.size;
    if (!width || param.size % width) return false;
    long before = -1;
    for (long i = 0; i < rows.size; ++i) {
        const long row = rows.as<int64_t>()[i];
        if (row <= before || row >= param.size / width) return false;
        before = row;
    }
    return true;
}

// Lists of n arrays each: parameters, gradients, copies (bfloat16 beside float32 parameters, or
// None), which rows the gradients are of (int64, or None: of all), and the rule's states. Then the
// scale of all gradients, and for each parameter the rule's numbers in the order of its
// constructor. All contiguous; all but copies and rows of one dtype, float32 or float64.
template <template <typename> typename Rule>
static void run(const Array* arrays, int num_arrays, const double* numbers) {
    constexpr int lists = 4 + Rule<float>::kStates;
    const int count = num_arrays / lists;
    require(num_arrays == lists * count, "optimizer: expected lists of one length");
    if (!count) return;
    const Dtype dtype = arrays[0].dtype;
    for (int i = 0; i < num_arrays; ++i) {
        const Array &param = arrays[i % count], &rows = arrays[3 * count + i % count];
        const int list = i / count;
        const bool fits =
            list == 3 ? !rows || rows_fit(param, arrays[count + i % count], rows)
            : list == 2
                ? !arrays[i] || (arrays[i].size == param.size && dtype == Dtype::float32 &&
                                 arrays[i].dtype == Dtype::bfloat16)
                : arrays[i].dtype == dtype && (arrays[i].size == param.size || (list == 1 && rows));
        require(fits, "optimizer: arrays that do not fit");
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
KERNEL(direction) {
    run<Direction>(arrays, num_arrays, numbers);
}
KERNEL(follow) {
    run<Follow>(arrays, num_arrays, numbers);
}

// out (1,) float64: the root of the sum of the squares of all elements of the arrays before it.
KERNEL(l2_norm) {
    const int count = num_arrays - 1;
    long pieces = 0;
    for (int i = 0; i < count; ++i) pieces += (arrays[i].size + kPiece - 1) / kPiece;
    double* sums = scratch<double>(6, pieces + 1);
    for (int i = 0; i < count; ++i)
        by_dtype(arrays[i], "l2_norm: expected float32, float64 or bfloat16", [](auto) {});
    const auto piece = [](int) { return kPiece; };
    for_each_piece(arrays, count, piece, [=](long number, int i, long begin, long end) {
        by_dtype(arrays[i], "", [&](auto kind) {
            sums[number] =
                sum_of_squares(arrays[i].as<const decltype(kind)>() + begin, end - begin);
        });
    });
    double total = 0;
    for (long i = 0; i < pieces; ++i) total += sums[i];
    arrays[count].as<double>()[0] = __builtin_sqrt(total);
}

}  // namespace minitorch::MT_INSTRUCTION_SET
