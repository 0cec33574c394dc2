// CUDA for a processor without a GPU: include this, and a kernel compiles with g++.
//
// The words of the language are macros; what only a GPU can do is a function of the emulator
// (machine.h). Under nvcc none of this is needed, and nothing of it is there but the few names that
// a kernel may use with either compiler:
//
//     SHARED(float, tile, [32][33]);          __shared__ float tile[32][33];
//     SHARED_DYNAMIC(float, buffer);          extern __shared__ float buffer[];
//     launch(kernel<64>, grid, block, bytes, stream, arguments...);        kernel<<<...>>>(...)

#pragma once

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <utility>

#define SHARED(type, name, dimensions) __shared__ type name dimensions
#define SHARED_DYNAMIC(type, name)                                  \
    extern __shared__ __align__(1024) unsigned char simt_dynamic[]; \
    type* const name = reinterpret_cast<type*>(simt_dynamic)

// Grids launched while one of these lives run at once: here, if each has a stream of its own.
struct Together {
    Together() {}
    ~Together() {}
};

#else

#include <algorithm>
#include <bit>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "api.h"
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict

#define threadIdx (simt::thread_index())
#define blockIdx (simt::block_index())
#define blockDim simt_block_size()  // a member of cudaLaunchConfig_t as well
#define gridDim simt_grid_size()
inline dim3 simt_block_size() {
    return simt::block_size();
}
inline dim3 simt_grid_size() {
    return simt::grid_size();
}
constexpr int warpSize = 32;

#define SHARED(type, name, dimensions)                                        \
    static const char simt_key_##name = 0;                                    \
    typedef type simt_type_##name dimensions;                                 \
    auto& name = *static_cast<simt_type_##name*>(                             \
        simt::shared_array(&simt_key_##name, #name, sizeof(simt_type_##name), \
                           alignof(simt_type_##name), simt::Site()))
#define SHARED_DYNAMIC(type, name) type* const name = static_cast<type*>(simt::dynamic_shared())

// What the emulator itself reads and writes is not the kernel's doing.
#define SIMT_UNWATCHED __attribute__((no_sanitize_thread))

namespace simt {

// A kernel and its arguments; every thread has copies of its own.
template <typename Kernel, typename... Arguments>
struct Call {
    Kernel kernel;
    std::tuple<Arguments...> arguments;

    SIMT_UNWATCHED static void enter(const void* call) {
        static_cast<const Call*>(call)->spread(std::index_sequence_for<Arguments...>());
    }
    template <size_t... i>
    SIMT_UNWATCHED void spread(std::index_sequence<i...>) const {
        kernel(std::get<i>(arguments)...);
    }
    static void drop(const void* call) { delete static_cast<const Call*>(call); }
};

template <typename... Arguments, typename Kernel>
cudaError_t start(Kernel kernel, Launch launch, Arguments... arguments) {
    using Whole = Call<Kernel, Arguments...>;
    launch.entry = Whole::enter;
    launch.drop = Whole::drop;
    launch.arguments = new Whole{kernel, {std::move(arguments)...}};
    return run(launch);
}

inline Launch launch_of(const cudaLaunchConfig_t& config) {
    Launch launch{config.grid, config.block, config.dynamicSmemBytes};
    launch.stream = config.stream;
    for (unsigned i = 0; i < config.numAttrs; ++i) {
        const auto& [id, value] = config.attrs[i];
        if (id == cudaLaunchAttributeClusterDimension) launch.cluster = value.clusterDim;
        if (id == cudaLaunchAttributeCooperative) launch.cooperative = value.cooperative != 0;
    }
    return launch;
}

}  // namespace simt

using simt::Together;

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    simt::Launch launch = simt::launch_of(*config);
    if (simt::counting) launch.name = simt::name_of(reinterpret_cast<const void*>(kernel));
    return simt::start<std::decay_t<Parameters>...>(kernel, launch,
                                                    std::forward<Arguments>(arguments)...);
}

// kernel<<<grid, block, bytes, stream>>>(arguments) becomes
// SIMT_LAUNCH((kernel), (grid, block, bytes, stream), (arguments)).
struct simt_configuration : simt::Launch {
    simt_configuration(dim3 grid, dim3 block, size_t shared_bytes = 0,
                       cudaStream_t stream = nullptr)
        : simt::Launch{grid, block, shared_bytes} {
        this->stream = stream;
    }
};
template <typename Kernel, typename... Arguments>
void simt_launch(const char* name, Kernel kernel, simt_configuration how, Arguments... arguments) {
    how.name = name;
    simt::start<Arguments...>(kernel, how, arguments...);
}
#define SIMT_BARE(...) __VA_ARGS__
#define SIMT_TEXT(...) #__VA_ARGS__
#define SIMT_LAUNCH(kernel, how, arguments) \
    SIMT_LAUNCH_(kernel, how, SIMT_LAUNCH_ARGUMENTS arguments)
#define SIMT_LAUNCH_ARGUMENTS(...) __VA_OPT__(, ) __VA_ARGS__
#define SIMT_LAUNCH_(kernel, how, ...)                                   \
    simt_launch(                                                         \
        SIMT_TEXT kernel, [](auto... own) { SIMT_BARE kernel(own...); }, \
        simt_configuration how __VA_ARGS__)

inline void __syncthreads(simt::Site site = {}) {
    simt::barrier(0, 0, true, site);
}
SIMT_UNWATCHED inline int __syncthreads_count(int predicate, simt::Site site = {}) {
    return simt::count_at_barrier(predicate != 0, site);
}
SIMT_UNWATCHED inline int __syncthreads_or(int predicate, simt::Site site = {}) {
    return simt::count_at_barrier(predicate != 0, site) > 0;
}
SIMT_UNWATCHED inline int __syncthreads_and(int predicate, simt::Site site = {}) {
    return simt::count_at_barrier(predicate == 0, site) == 0;
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFF, simt::Site site = {}) {
    simt::sync_warp(mask, site);
}
inline void __threadfence_block() {
    simt::fence(false);
}
inline void __threadfence() {
    simt::fence(true);
}
inline void __threadfence_system() {
    simt::fence(true);
}
inline void __nanosleep(unsigned, simt::Site site = {}) {
    simt::spin("time to pass", site);
}

namespace simt {

// The shuffles: each lane leaves its value and which lane's it wants.
template <typename T>
struct Shuffle {
    T value, result;
    unsigned source;
    Site site;
};

template <typename T>
SIMT_UNWATCHED void exchange(void** lanes, unsigned mask) {
    for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (!(mask >> lane & 1)) continue;
        auto* mine = static_cast<Shuffle<T>*>(lanes[lane]);
        if (!(mask >> mine->source & 1)) {
            report_absent_lane(mine->source, mine->site);
            std::memset(static_cast<void*>(&mine->result), 0xFF, sizeof(T));
        } else {
            mine->result = static_cast<Shuffle<T>*>(lanes[mine->source])->value;
        }
    }
}

template <typename T>
SIMT_UNWATCHED T shuffle(const char* name, unsigned mask, T value, unsigned source, Site site) {
    Shuffle<T> mine{value, value, source, site};
    collective(name, mask, &mine, exchange<T>, site);
    return mine.result;
}

// The votes and reductions: a function of all values, the same for all lanes.
template <typename T>
struct Vote {
    T value, result;
};

template <typename T, typename Combine>
SIMT_UNWATCHED void combine_lanes(void** lanes, unsigned mask) {
    T total{};
    bool first = true;
    for (unsigned lane = 0; lane < kWarp; ++lane)
        if (mask >> lane & 1) {
            const T value = static_cast<Vote<T>*>(lanes[lane])->value;
            total = first ? value : Combine()(total, value);
            first = false;
        }
    for (unsigned lane = 0; lane < kWarp; ++lane)
        if (mask >> lane & 1) static_cast<Vote<T>*>(lanes[lane])->result = total;
}

template <typename Combine, typename T>
SIMT_UNWATCHED T combine(const char* name, unsigned mask, T value, Site site) {
    Vote<T> mine{value, value};
    collective(name, mask, &mine, combine_lanes<T, Combine>, site);
    return mine.result;
}

struct Sum {
    template <typename T>
    T operator()(T a, T b) const {
        return a + b;
    }
};
struct Least {
    template <typename T>
    T operator()(T a, T b) const {
        return a < b ? a : b;
    }
};
struct Greatest {
    template <typename T>
    T operator()(T a, T b) const {
        return a > b ? a : b;
    }
};
struct And {
    template <typename T>
    T operator()(T a, T b) const {
        return a & b;
    }
};
struct Or {
    template <typename T>
    T operator()(T a, T b) const {
        return a | b;
    }
};

// *p = change(*p) at once; returns what was there.
template <typename T, typename Change>
SIMT_UNWATCHED T update(T* p, Change change, Site site) {
    using Bits = std::conditional_t<sizeof(T) == 8, uint64_t,
                                    std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t> >;
    if (checking) check_atomic(p, sizeof(T), site);
    auto* bits = reinterpret_cast<Bits*>(p);
    Bits seen = __atomic_load_n(bits, __ATOMIC_SEQ_CST), next;
    T before, after;
    do {
        std::memcpy(static_cast<void*>(&before), &seen, sizeof(T));
        after = change(before);
        std::memcpy(&next, static_cast<void*>(&after), sizeof(T));
    } while (
        !__atomic_compare_exchange_n(bits, &seen, next, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    if (next == seen) spin("a change of an atomic", site);  // a lock that is taken, say
    return before;
}

}  // namespace simt

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, simt::Site site = {}) {
    const unsigned first = simt::lane() / width * width;
    return simt::shuffle("__shfl_sync", mask, value, first + unsigned(source) % width, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, simt::Site site = {}) {
    const unsigned lane = simt::lane(), source = lane ^ flip;
    const bool inside = source / width <= lane / width;
    return simt::shuffle("__shfl_xor_sync", mask, value, inside ? source : lane, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, simt::Site site = {}) {
    const unsigned lane = simt::lane();
    const bool inside = lane % width + by < unsigned(width);
    return simt::shuffle("__shfl_down_sync", mask, value, inside ? lane + by : lane, site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, simt::Site site = {}) {
    const unsigned lane = simt::lane();
    const bool inside = lane % width >= by;
    return simt::shuffle("__shfl_up_sync", mask, value, inside ? lane - by : lane, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = {}) {
    return simt::combine<simt::Or>("__ballot_sync", mask, predicate ? 1u << simt::lane() : 0u,
                                   site);
}
inline int __any_sync(unsigned mask, int predicate, simt::Site site = {}) {
    return simt::combine<simt::Or>("__any_sync", mask, int(predicate != 0), site);
}
inline int __all_sync(unsigned mask, int predicate, simt::Site site = {}) {
    return simt::combine<simt::And>("__all_sync", mask, int(predicate != 0), site);
}
template <typename T>
T __reduce_add_sync(unsigned mask, T value, simt::Site site = {}) {
    return simt::combine<simt::Sum>("__reduce_add_sync", mask, value, site);
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value, simt::Site site = {}) {
    return simt::combine<simt::Greatest>("__reduce_max_sync", mask, value, site);
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value, simt::Site site = {}) {
    return simt::combine<simt::Least>("__reduce_min_sync", mask, value, site);
}

#define SIMT_ATOMIC(name, expression)                                                      \
    template <typename T>                                                                  \
    SIMT_UNWATCHED T name(T* p, std::type_identity_t<T> x, simt::Site site = {}) {         \
        return simt::update(p, [=](T old) SIMT_UNWATCHED { return T(expression); }, site); \
    }
SIMT_ATOMIC(atomicAdd, old + x)
SIMT_ATOMIC(atomicSub, old - x)
SIMT_ATOMIC(atomicExch, (void(old), x))
SIMT_ATOMIC(atomicMin, old < x ? old : x)
SIMT_ATOMIC(atomicMax, old > x ? old : x)
SIMT_ATOMIC(atomicAnd, old& x)
SIMT_ATOMIC(atomicOr, old | x)
SIMT_ATOMIC(atomicXor, old ^ x)
SIMT_ATOMIC(atomicInc, old >= x ? 0 : old + 1)
SIMT_ATOMIC(atomicDec, old == 0 || old > x ? x : old - 1)
#undef SIMT_ATOMIC

template <typename T>
SIMT_UNWATCHED T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> x,
                           simt::Site site = {}) {
    return simt::update(p, [=](T old) SIMT_UNWATCHED { return old == expected ? x : old; }, site);
}

using std::max;
using std::min;

template <typename T>
T __ldg(const T* p) {
    return *p;
}
inline float __expf(float x) {
    return std::exp(x);
}
inline float __logf(float x) {
    return std::log(x);
}
inline float __fdividef(float x, float y) {
    return x / y;
}
inline float __frcp_rn(float x) {
    return 1 / x;
}
inline float __fsqrt_rn(float x) {
    return std::sqrt(x);
}
inline float __fmaf_rn(float x, float y, float z) {
    return std::fma(x, y, z);
}
inline float rsqrtf(float x) {
    return 1 / std::sqrt(x);
}
inline double rsqrt(double x) {
    return 1 / std::sqrt(x);
}
inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline int __clz(int x) {
    return x ? __builtin_clz(x) : 32;
}
inline unsigned __umulhi(unsigned x, unsigned y) {
    return uint64_t(x) * y >> 32;
}
inline float __int_as_float(int x) {
    return std::bit_cast<float>(x);
}
inline int __float_as_int(float x) {
    return std::bit_cast<int>(x);
}
inline float __uint_as_float(unsigned x) {
    return std::bit_cast<float>(x);
}
inline unsigned __float_as_uint(float x) {
    return std::bit_cast<unsigned>(x);
}

#endif

#include "launch.h"
