// What generated CUDA C may use of the language and its headers, for g++.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "half.h"
#include "ptx.h"
#include "wmma.h"

#define __CUDA_ARCH__ 900
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0
// Not inlined into the table's functions, whose reads of the arguments are nobody's business.
#define __global__ __attribute__((noinline))
#define EMU_UNCHECKED __attribute__((no_sanitize("thread")))
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __grid_constant__
#define __align__(n) alignas(n)

// Section: declarations of shared memory, which translate.py has put in these words

#define EMU_SHARED(type, name, count, alignment) \
    auto& name = *static_cast<type(*)[count]>(emu::static_shared(__COUNTER__, sizeof(type[count]), alignment))
#define EMU_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(emu::dynamic_shared())

// Section: built-in variables and vector types

using dim3 = emu_dim;
extern emu_dim threadIdx, blockIdx, blockDim, gridDim;

#define EMU_VECTORS(type, name, align2, align4)                                                         \
    struct name##1 { type x; };                                                                         \
    struct alignas(align2) name##2 { type x, y; };                                                      \
    struct name##3 { type x, y, z; };                                                                   \
    struct alignas(align4) name##4 { type x, y, z, w; };                                                \
    inline name##1 make_##name##1(type x) { return {x}; }                                               \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; }                                    \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                         \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMU_VECTORS(signed char, char, 2, 4)
EMU_VECTORS(unsigned char, uchar, 2, 4)
EMU_VECTORS(short, short, 4, 8)
EMU_VECTORS(unsigned short, ushort, 4, 8)
EMU_VECTORS(int, int, 8, 16)
EMU_VECTORS(unsigned, uint, 8, 16)
EMU_VECTORS(long, long, 16, 16)
EMU_VECTORS(unsigned long, ulong, 16, 16)
EMU_VECTORS(long long, longlong, 16, 16)
EMU_VECTORS(unsigned long long, ulonglong, 16, 16)
EMU_VECTORS(float, float, 8, 16)
EMU_VECTORS(double, double, 16, 16)

// Section: barriers and warps

inline void __syncthreads() { emu::sync_block(); }
inline void __syncwarp(unsigned mask = ~0u) { emu::sync_warp(mask); }
inline unsigned __activemask() { return emu::active_mask(); }
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace emu {

template <class T>
struct Shuffle {
    T value, result;
    int source;
};

// Each lane takes the value of its source lane; one that has not come leaves the lane's own.
template <class T>
T shuffle(const char* what, unsigned mask, T value, int source) {
    Shuffle<T> pack{value, value, source};
    meet(mask, what, &pack, [](void** packs, unsigned lanes) {
        for (int lane = 0; lane < kWarp; ++lane) {
            if (!(lanes >> lane & 1)) continue;
            auto* mine = static_cast<Shuffle<T>*>(packs[lane]);
            if (lanes >> mine->source & 1) mine->result = static_cast<Shuffle<T>*>(packs[mine->source])->value;
        }
    });
    return pack.result;
}

inline unsigned ballot(unsigned mask, bool vote) {
    struct Pack {
        unsigned vote, result;
    } pack{vote, 0};
    meet(mask, "a vote", &pack, [](void** packs, unsigned lanes) {
        unsigned all = 0;
        for (int lane = 0; lane < kWarp; ++lane)
            if (lanes >> lane & 1) all |= static_cast<Pack*>(packs[lane])->vote << lane;
        for (int lane = 0; lane < kWarp; ++lane)
            if (lanes >> lane & 1) static_cast<Pack*>(packs[lane])->result = all;
    });
    return pack.result;
}

}  // namespace emu

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return emu::shuffle("__shfl_sync", mask, value, (emu::current->lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
    int lane = emu::current->lane;
    return emu::shuffle("__shfl_down_sync", mask, value, int(lane % width + by) < width ? lane + by : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
    int lane = emu::current->lane;
    return emu::shuffle("__shfl_up_sync", mask, value, lane % width >= int(by) ? lane - by : lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32) {
    int lane = emu::current->lane, source = lane ^ by;
    return emu::shuffle("__shfl_xor_sync", mask, value, source / width <= lane / width ? source : lane);
}
inline unsigned __ballot_sync(unsigned mask, int vote) { return emu::ballot(mask, vote); }
inline int __any_sync(unsigned mask, int vote) { return emu::ballot(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return emu::ballot(mask, !vote) == 0; }

// Section: memory

inline uint32_t __cvta_generic_to_shared(const void* p) {
    return static_cast<const char*>(p) - emu::shared_base;
}
template <class T>
T __ldg(const T* p) {
    return *p;
}

// Threads change only at barriers, so plain code is atomic.
template <class T, class F>
T emu_atomic(T* p, F change) {
    emu::access(p, sizeof *p, emu::kAtomic, emu::current->thread);
    T old;
    memcpy(&old, p, sizeof old);
    T value = change(old);
    memcpy(p, &value, sizeof value);
    return old;
}
template <class T>
T atomicAdd(T* p, std::common_type_t<T> v) {
    return emu_atomic(p, [v](T old) { return T(old + v); });
}
template <class T>
T atomicMax(T* p, std::common_type_t<T> v) {
    return emu_atomic(p, [v](T old) { return old < v ? v : old; });
}
template <class T>
T atomicMin(T* p, std::common_type_t<T> v) {
    return emu_atomic(p, [v](T old) { return v < old ? v : old; });
}
template <class T>
T atomicExch(T* p, std::common_type_t<T> v) {
    return emu_atomic(p, [v](T) { return v; });
}
template <class T>
T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> v) {
    return emu_atomic(p, [=](T old) { return old == expected ? v : old; });
}

// Section: arithmetic

inline int max(int a, int b) { return a < b ? b : a; }
inline int min(int a, int b) { return b < a ? b : a; }
inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
inline unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
inline long max(long a, long b) { return a < b ? b : a; }
inline long min(long a, long b) { return b < a ? b : a; }
inline unsigned long max(unsigned long a, unsigned long b) { return a < b ? b : a; }
inline unsigned long min(unsigned long a, unsigned long b) { return b < a ? b : a; }
// As in CUDA, and other than the operator, a NaN loses.
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __int_as_float(int bits) { return float_of_bits(uint32_t(bits)); }
inline int __float_as_int(float x) { return int(bits_of_float(x)); }
inline float __uint_as_float(unsigned bits) { return float_of_bits(bits); }
inline double __longlong_as_double(long long bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline unsigned __float_as_uint(float x) { return bits_of_float(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return uint64_t(a) * b >> 32; }
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; ++i) c += int8_t(a >> 8 * i) * int8_t(b >> 8 * i);
    return c;
}
using std::isfinite;
using std::isinf;
using std::isnan;

// Section: the table of kernels

namespace emu {

template <class... P, size_t... I>
EMU_UNCHECKED void call(void (*kernel)(P...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<P>*>(args[I])...);
}
template <class... P>
EMU_UNCHECKED void call(void (*kernel)(P...), void** args) {
    call(kernel, args, std::index_sequence_for<P...>());
}
template <class... P>
constexpr int parameters(void (*)(P...)) {
    return sizeof...(P);
}

}  // namespace emu

#define EMU_KERNEL(name, max_threads) \
    {#name, [](void** args) EMU_UNCHECKED { emu::call(name, args); }, emu::parameters(name), max_threads}
