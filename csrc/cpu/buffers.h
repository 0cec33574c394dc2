// Recycling of array buffers; see buffers.cpp.

#pragma once

#include <cstddef>
#include <cstdint>

namespace minitorch {

struct BufferStatistics {
    size_t idle_bytes, limit_bytes;
    uint64_t reused, fresh;
};

// Once, when NumPy is there.
void find_numpy_allocator();
// On or off for NumPy's arrays in this context; idle buffers of at most `limit` bytes are kept. Throws
// PythonError.
void recycle_buffers(bool on, size_t limit);
// Gives the idle ones back: how many bytes.
size_t release_buffers();
BufferStatistics buffer_statistics();

}  // namespace minitorch
