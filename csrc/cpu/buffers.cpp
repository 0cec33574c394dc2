// An allocator for NumPy's arrays that keeps large buffers when they are freed and hands them out
// again, so that a training step touches no fresh pages after the first: the kernel zeroes every
// page that it gives out, and a fault on each costs more than most elementwise passes over it.
//
// NumPy lets an extension set its allocator (NEP 49), and every array remembers the one that it
// came from, so that switching is safe at any time. The allocator is set per context (contextvars):
// a thread that did not switch it on uses NumPy's own.
//
// Requests below kSmallest go to NumPy's own allocator, which caches tiny ones. Larger ones are
// rounded up to a size class, eight to a doubling, so that at most an eighth is lost, and pages
// that are never touched are not even that. A freed buffer goes to the list of its class. When the
// idle buffers exceed the limit, all are given back, so that sizes that are no longer in use do not
// stay.
//
// In front of every buffer stands a Header, and large buffers are aligned to 64 bytes.

#include "buffers.h"

#include "python.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

namespace minitorch {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kSmallest = size_t{1} << 15;
constexpr size_t kHugePages = size_t{1} << 22;  // from here on NumPy too asks for huge pages
constexpr int kClassesPerDoubling = 8;
constexpr int kClasses = (64 - 15) * kClassesPerDoubling;
constexpr uint32_t kNoClass = UINT32_MAX;

struct alignas(16) Header {
    union {
        void* base;     // in use: where the system's block begins
        uint32_t size;  // below kSmallest: what NumPy's allocator was asked for
    };
    uint32_t size_class;  // kNoClass below kSmallest
};
static_assert(sizeof(Header) == 16);

struct SizeClass {
    uint32_t index;
    size_t bytes;
};

// The smallest class that holds `size`: with 2^(e-1) < size <= 2^e, a multiple of 2^(e-1) / 8.
SizeClass class_of(size_t size) {
    const int exponent = std::bit_width(size - 1);
    const size_t half = size_t{1} << (exponent - 1);
    const size_t step = half / kClassesPerDoubling;
    const size_t steps = (size - half + step - 1) / step;
    return {static_cast<uint32_t>((exponent - 15) * kClassesPerDoubling + steps - 1),
            half + steps * step};
}

size_t bytes_of_class(uint32_t index) {
    const int exponent = 15 + index / kClassesPerDoubling;
    const size_t half = size_t{1} << (exponent - 1);
    return half + half / kClassesPerDoubling * (index % kClassesPerDoubling + 1);
}

Header& header_of(void* buffer) {
    return static_cast<Header*>(buffer)[-1];
}

// A block from the system, with room for the header and the alignment. nullptr if there is none.
void* take_from_system(SizeClass wanted, bool zeroed) {
    const size_t bytes = wanted.bytes + sizeof(Header) + kAlignment;
    if (bytes < wanted.bytes) return nullptr;
    void* base = zeroed ? std::calloc(1, bytes) : std::malloc(bytes);
    if (!base) return nullptr;
    const auto first = reinterpret_cast<uintptr_t>(base) + sizeof(Header);
    void* buffer = reinterpret_cast<void*>((first + kAlignment - 1) / kAlignment * kAlignment);
    header_of(buffer) = {.base = base, .size_class = wanted.index};
#if defined(__linux__)
    if (wanted.bytes >= kHugePages) {
        constexpr uintptr_t page = 4096;
        const uintptr_t begin = (reinterpret_cast<uintptr_t>(base) + page - 1) / page * page;
        madvise(reinterpret_cast<void*>(begin), wanted.bytes, MADV_HUGEPAGE);
    }
#endif
    return buffer;
}

// The buffers that nobody uses. An idle buffer's first word points to the next of its class.
class IdleBuffers {
public:
    void* take(SizeClass wanted) {
        const std::lock_guard lock(mutex_);
        void* buffer = first_[wanted.index];
        if (buffer) {
            first_[wanted.index] = *static_cast<void**>(buffer);
            idle_bytes_ -= wanted.bytes;
            ++reused_;
        } else {
            ++fresh_;
        }
        return buffer;
    }

    void keep(void* buffer) {
        const uint32_t index = header_of(buffer).size_class;
        const size_t bytes = bytes_of_class(index);
        const std::lock_guard lock(mutex_);
        if (idle_bytes_ + bytes > limit_) release_locked();
        if (bytes > limit_) {
            std::free(header_of(buffer).base);
            return;
        }
        *static_cast<void**>(buffer) = first_[index];
        first_[index] = buffer;
        idle_bytes_ += bytes;
    }

    size_t release() {
        const std::lock_guard lock(mutex_);
        return release_locked();
    }

    void set_limit(size_t bytes) {
        const std::lock_guard lock(mutex_);
        limit_ = bytes;
        if (idle_bytes_ > limit_) release_locked();
    }

    BufferStatistics statistics() {
        const std::lock_guard lock(mutex_);
        return {idle_bytes_, limit_, reused_, fresh_};
    }

private:
    size_t release_locked() {
        for (void*& first : first_) {
            while (first) {
                void* next = *static_cast<void**>(first);
                std::free(header_of(first).base);
                first = next;
            }
        }
        return std::exchange(idle_bytes_, 0);
    }

    std::mutex mutex_;
    std::array<void*, kClasses> first_{};
    size_t idle_bytes_ = 0;
    size_t limit_ = SIZE_MAX;
    uint64_t reused_ = 0;
    uint64_t fresh_ = 0;
};

// Never destroyed: arrays may outlive every static object.
IdleBuffers& idle() {
    static IdleBuffers& buffers = *new IdleBuffers;
    return buffers;
}

PyDataMemAllocator numpy_allocator;  // set by bind_buffers

void* allocate_small(size_t size, bool zeroed) {
    const size_t bytes = size + sizeof(Header);
    void* base = zeroed ? numpy_allocator.calloc(numpy_allocator.ctx, 1, bytes)
                        : numpy_allocator.malloc(numpy_allocator.ctx, bytes);
    if (!base) return nullptr;
    void* buffer = static_cast<char*>(base) + sizeof(Header);
    header_of(buffer) = {.size = static_cast<uint32_t>(bytes), .size_class = kNoClass};
    return buffer;
}

void* allocate_large(size_t size, bool zeroed) {
    if (size > SIZE_MAX / 4) return nullptr;
    const SizeClass wanted = class_of(size);
    if (void* buffer = idle().take(wanted)) {
        if (zeroed) std::memset(buffer, 0, size);
        return buffer;
    }
    if (void* buffer = take_from_system(wanted, zeroed)) return buffer;
    idle().release();
    return take_from_system(wanted, zeroed);
}

void* allocate(void*, size_t size) {
    return size < kSmallest ? allocate_small(size, false) : allocate_large(size, false);
}

void* allocate_zeroed(void*, size_t count, size_t element_size) {
    size_t size;
    if (__builtin_mul_overflow(count, element_size, &size)) return nullptr;
    return size < kSmallest ? allocate_small(size, true) : allocate_large(size, true);
}

// NumPy passes the size too; the header knows it, whatever has become of the array's shape.
void release(void*, void* buffer, size_t) {
    if (!buffer) return;
    const Header& header = header_of(buffer);
    if (header.size_class == kNoClass)
        numpy_allocator.free(numpy_allocator.ctx, static_cast<char*>(buffer) - sizeof(Header),
                             header.size);
    else
        idle().keep(buffer);
}

size_t capacity(void* buffer) {
    const Header& header = header_of(buffer);
    return header.size_class == kNoClass ? header.size - sizeof(Header)
                                         : bytes_of_class(header.size_class);
}

void* reallocate(void*, void* buffer, size_t size) {
    if (!buffer) return allocate(nullptr, size);
    const size_t before = capacity(buffer);
    if (size <= before && size > before / 2) return buffer;
    void* moved = allocate(nullptr, size);
    if (!moved) return nullptr;
    std::memcpy(moved, buffer, std::min(before, size));
    release(nullptr, buffer, before);
    return moved;
}

PyDataMem_Handler handler = {
    .name = "minitorch_recycle",
    .version = 1,
    .allocator = {.ctx = nullptr,
                  .malloc = allocate,
                  .calloc = allocate_zeroed,
                  .realloc = reallocate,
                  .free = release},
};

}  // namespace

void recycle_buffers(bool on, size_t limit) {
    static PyObject* capsule = PyCapsule_New(&handler, "mem_handler", nullptr);
    if (!capsule) throw PythonError();
    idle().set_limit(on ? limit : 0);
    const Owned before(PyDataMem_SetHandler(on ? capsule : nullptr));
}

size_t release_buffers() {
    return idle().release();
}

BufferStatistics buffer_statistics() {
    return idle().statistics();
}

void find_numpy_allocator() {
    numpy_allocator = static_cast<PyDataMem_Handler*>(
                          PyCapsule_GetPointer(PyDataMem_DefaultHandler, "mem_handler"))
                          ->allocator;
}

}  // namespace minitorch
