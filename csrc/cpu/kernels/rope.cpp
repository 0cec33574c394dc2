#include "rope.h"

#include "dispatch.h"

namespace minitorch::MT_INSTRUCTION_SET {

// x, out (..., time, features), the last dimension contiguous, of one shape; cosine, sine (time,
// features / 2), contiguous, of the compute type; interleaved (0 or 1), inverse (0 or 1).
KERNEL(rope) {
    const Array &x = arrays[0], &out = arrays[1], &cosine = arrays[2], &sine = arrays[3];
    require(x.ndim >= 2 && out.ndim == x.ndim && out.dtype == x.dtype && x.dim(-1) % 2 == 0 &&
                x.stride(-1) == 1 && out.stride(-1) == 1 &&
                cosine.size == x.dim(-2) * x.dim(-1) / 2 && sine.size == cosine.size,
            "rope: arrays that do not fit");
    for (int i = 0; i < x.ndim; ++i)
        require(out.shape[i] == x.shape[i], "rope: arrays that do not fit");
    const bool interleaved = numbers[0] != 0;
    const long half = x.dim(-1) / 2, time = x.dim(-2), rows = half ? x.size / (2 * half) : 0;
    by_dtype(x, "rope: expected float32, float64 or bfloat16", [&](auto kind) {
        using T = decltype(kind);
        using C = Compute<T>;
        const C sign = numbers[1] != 0 ? -1 : 1;
        parallel_ranges(rows, rows_per_piece(4 * half), [&](long begin, long end) {
            // An offset costs more divisions than a row has vectors: one for each run along time.
            for (long row = begin, run; row < end; row += run) {
                const long first = row % time;
                run = time - first < end - row ? time - first : end - row;
                const T* from = x.as<T>() + row_offset(x, row);
                T* to = out.as<T>() + row_offset(out, row);
                const C* c = cosine.as<C>() + first * half;
                const C* s = sine.as<C>() + first * half;
                for (long i = 0; i < run; ++i, c += half, s += half) {
                    if (interleaved)
                        rotate_neighbours(from, to, c, s, half, sign);
                    else
                        rotate_halves(from, to, c, s, half, sign);
                    from += x.stride(-2), to += out.stride(-2);
                }
            }
        });
    });
}

}  // namespace minitorch::MT_INSTRUCTION_SET
