// The first elements of an order, in which a NaN is the largest of all.

#pragma once

#include <cstdint>

#include "vector.h"

namespace minitorch::MT_INSTRUCTION_SET {

// Where the k largest (or smallest) of `count` numbers are, in order, the lower index first in a
// tie. A number is compared with the last of those found so far, and goes on if it comes after: of
// many numbers few do not.
template <typename T, bool largest = true>
void best(const T* x, long count, long k, int64_t* index) {
    const auto value = [&](long i) { return load_one(x + i); };
    const auto before = [&](long a, long b) {
        const auto first = value(a), second = value(b);
        if (largest) return first > second || (first != first && second == second);
        return first < second || (first == first && second != second);
    };
    for (long i = 0; i < count; ++i) {
        if (i >= k && !before(i, index[k - 1])) continue;
        long at = i < k ? i : k - 1;
        for (; at > 0 && before(i, index[at - 1]); --at) index[at] = index[at - 1];
        index[at] = i;
    }
}

}  // namespace minitorch::MT_INSTRUCTION_SET
