// What the processor can do, and which of its instruction sets is in use.

#pragma once

#include <iterator>

namespace minitorch {

// Best first. Kernels are compiled for most of them; one that adds nothing to a kernel uses the next
// set's.
constexpr const char* kInstructionSets[] = {
#if defined(__x86_64__)
    "amx_bf16", "avx512_bf16", "avx512", "avx2",
#endif
    "portable",
};
constexpr int kInstructionSetCount = std::size(kInstructionSets);

// Whether the processor has the set of this number.
bool supports(int set);

// The number of the set in use: the best, until another is chosen.
int set_in_use();
void use_set(int set);

// Whether kernels may multiply in tile registers: amx_bf16 is in use. Its kernels are avx512_bf16's
// and ask this.
bool uses_tile_registers();

}  // namespace minitorch
