// Rows sorted by group: where the rows of each group end.

#pragma once

#include "../array.h"

namespace minitorch::MT_INSTRUCTION_SET {

// The groups' ends rise to `rows`.
inline void check_ends(const Array& ends, long rows) {
    require(ends.dtype == Dtype::int64 && ends.ndim == 1 && ends.size > 0 &&
                (ends.size == 1 || ends.strides[0] == 1),
            "grouped product: ends have to be contiguous int64");
    long before = 0;
    for (long e = 0; e < ends.size; ++e) {
        const long end = ends.as<int64_t>()[e];
        require(before <= end && end <= rows, "grouped product: ends out of order");
        before = end;
    }
    require(before == rows, "grouped product: the last group has to end with the rows");
}

// Some rows of a group.
struct Block {
    long group, begin, end;

    long rows() const { return end - begin; }
};

inline Block rows_of(const Array& ends, long group) {
    const int64_t* end = ends.as<int64_t>() + group;
    return {group, group ? static_cast<long>(end[-1]) : 0L, static_cast<long>(*end)};
}

inline long largest_group(const Array& ends) {
    long most = 0;
    for (long e = 0; e < ends.size; ++e)
        if (rows_of(ends, e).rows() > most) most = rows_of(ends, e).rows();
    return most;
}

}  // namespace minitorch::MT_INSTRUCTION_SET
