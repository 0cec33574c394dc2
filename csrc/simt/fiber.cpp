#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <stdexcept>

namespace simt {

#if defined(__x86_64__)

asm(R"(
.text
.globl simt_switch_stack
.type simt_switch_stack, @function
simt_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch_stack, .-simt_switch_stack
)");

constexpr int kSaved = 6;

#elif defined(__aarch64__)

asm(R"(
.text
.globl simt_switch_stack
.type simt_switch_stack, %function
simt_switch_stack:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size simt_switch_stack, .-simt_switch_stack
)");

#endif

#if defined(__x86_64__) || defined(__aarch64__)

extern "C" void simt_switch_stack(void** save, void* load);

void switch_fiber(Fiber& from, Fiber& to) {
    simt_switch_stack(&from.stack_pointer, to.stack_pointer);
}

void make_fiber(Fiber& fiber, char* stack, size_t bytes, void (*entry)()) {
    auto top = reinterpret_cast<uintptr_t>(stack + bytes) & ~uintptr_t{15};
    auto* words = reinterpret_cast<uintptr_t*>(top);
#if defined(__x86_64__)
    *--words = 0;  // entry begins as if called: the stack is aligned but for the return address
    *--words = reinterpret_cast<uintptr_t>(entry);
    for (int i = 0; i < kSaved; ++i) *--words = 0;
#else
    words -= 20;
    for (int i = 0; i < 20; ++i) words[i] = 0;
    words[11] = reinterpret_cast<uintptr_t>(entry);  // x30, where `ret` goes
#endif
    fiber.stack_pointer = words;
}

#else

void switch_fiber(Fiber& from, Fiber& to) {
    swapcontext(&from.context, &to.context);
}

void make_fiber(Fiber& fiber, char* stack, size_t bytes, void (*entry)()) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, entry, 0);
}

#endif

char* Stacks::at(size_t index) {
    constexpr size_t page = 4096;
    if (!base_) {
        void* memory = mmap(nullptr, kBytes * kMost, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::runtime_error("simt: no memory for stacks");
        base_ = static_cast<char*>(memory);
    }
    for (; ready_ <= index; ++ready_)
        mprotect(base_ + ready_ * kBytes + page, kBytes - page, PROT_READ | PROT_WRITE);
    return base_ + index * kBytes;
}

Stacks::~Stacks() {
    if (base_) munmap(base_, kBytes * kMost);
}

}  // namespace simt
