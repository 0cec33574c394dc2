// Rows that come in groups, of which only the device knows where they end.

#pragma once

#include <cstdint>

#include "../simt/simt.h"

namespace minitorch {

// Tile number `tile` of 128 rows of a group, each group's first one where it begins: there are at most
// rows / 128 + groups of them. Past the last one group is `groups`, and no rows are left.
struct GroupRows {
    int group;
    long begin, end;

    __device__ GroupRows(const int64_t* ends, int groups, long tile) {
        begin = end = 0;
        for (group = 0; group < groups; ++group) {
            end = ends[group];
            const long tiles = (end - begin + 127) / 128;
            if (tile < tiles) {
                begin += tile * 128;
                return;
            }
            tile -= tiles;
            begin = end;
        }
    }
};

}  // namespace minitorch
