// Fibers: functions with stacks of their own, which give way to each other where they choose.
//
// Switching saves the registers that a function must preserve on the stack that is left, and takes
// those of the other one from its stack: some fourteen instructions on x86-64 and aarch64.
// Elsewhere `ucontext` does it, some thirty times slower. A fiber stays on the thread that began
// it.

#pragma once

#include <cstddef>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace simt {

struct Fiber {
#if defined(__x86_64__) || defined(__aarch64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

// Leave `from`, go on with `to`.
void switch_fiber(Fiber& from, Fiber& to);

// A fiber that will call entry(), which may never return, on the stack [stack, stack + bytes).
void make_fiber(Fiber& fiber, char* stack, size_t bytes, void (*entry)());

// Stacks for the fibers of this thread, each with a page below it that may not be touched. They are
// one range of memory, so that a glance says whether an address lies on one of them.
class Stacks {
public:
    static constexpr size_t kBytes = size_t{1} << 18;
    static constexpr size_t kMost = size_t{1} << 14;

    ~Stacks();
    char* at(size_t index);
    bool contains(const void* address) const {
        return size_t(static_cast<const char*>(address) - base_) < kBytes * kMost;
    }

private:
    char* base_ = nullptr;
    size_t ready_ = 0;
};

}  // namespace simt
