#include "processor.h"

#include <array>
#include <string_view>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace minitorch {
namespace {

#if defined(__x86_64__)

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

// Linux gives a process the registers' eight KiB of state when it asks for them, and all its threads.
bool gets_tile_registers() {
#if defined(__linux__)
    constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24;  // CPUID.(EAX=7,ECX=0):EDX
    unsigned eax, ebx, ecx, edx = 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    if (~edx & (kBfloat16 | kTiles)) return false;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

#endif

bool ask(std::string_view set) {
#if defined(__x86_64__)
    if (set == "amx_bf16") return ask("avx512_bf16") && gets_tile_registers();
    if (set == "avx512_bf16") return has_avx512() && __builtin_cpu_supports("avx512bf16");
    if (set == "avx512") return has_avx512();
    if (set == "avx2")
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("f16c");
#endif
    return set == "portable";
}

int best() {
    int set = 0;
    while (!supports(set)) ++set;
    return set;
}

int& in_use() {
    static int set = best();
    return set;
}

}  // namespace

bool supports(int set) {
    static const auto answers = [] {
        std::array<bool, kInstructionSetCount> each;
        for (int i = 0; i < kInstructionSetCount; ++i) each[i] = ask(kInstructionSets[i]);
        return each;
    }();
    return answers[set];
}

int set_in_use() {
    return in_use();
}

void use_set(int set) {
    in_use() = set;
}

bool uses_tile_registers() {
    return kInstructionSets[in_use()] == std::string_view("amx_bf16");
}

}  // namespace minitorch
