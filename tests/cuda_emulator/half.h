// __half and __nv_bfloat16 as CUDA C++ sees them: every operation is done in float and rounded once.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

namespace emu {

#ifdef __aarch64__
using Binary16 = __fp16; // g++ has it there longer than _Float16
#else
using Binary16 = _Float16;
#endif

struct AsHalf {
    static uint16_t round(float value) {
        Binary16 half = value;
        uint16_t bits;
        memcpy(&bits, &half, sizeof bits);
        return bits;
    }
    static float widen(uint16_t bits) {
        Binary16 half;
        memcpy(&half, &bits, sizeof bits);
        return half;
    }
};

struct AsBfloat {
    static uint16_t round(float value) {
        uint32_t bits = bits_of_float(value);
        if (std::isnan(value)) return 0x7fff;
        return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
    static float widen(uint16_t bits) { return float_of_bits(uint32_t(bits) << 16); }
};

template <class Format>
struct Short {
    uint16_t bits;
    Short() = default;
    Short(float value) : bits(Format::round(value)) {}
    Short(double value) : bits(Format::round(float(value))) {}
    Short(int value) : bits(Format::round(float(value))) {}
    Short(long value) : bits(Format::round(float(value))) {}
    Short(unsigned value) : bits(Format::round(float(value))) {}
    operator float() const { return Format::widen(bits); }
    friend Short operator+(Short a, Short b) { return float(a) + float(b); }
    friend Short operator-(Short a, Short b) { return float(a) - float(b); }
    friend Short operator*(Short a, Short b) { return float(a) * float(b); }
    friend Short operator/(Short a, Short b) { return float(a) / float(b); }
    friend Short operator-(Short a) { return -float(a); }
    friend bool operator<(Short a, Short b) { return float(a) < float(b); }
    friend bool operator>(Short a, Short b) { return float(a) > float(b); }
    friend bool operator<=(Short a, Short b) { return float(a) <= float(b); }
    friend bool operator>=(Short a, Short b) { return float(a) >= float(b); }
    friend bool operator==(Short a, Short b) { return float(a) == float(b); }
    friend bool operator!=(Short a, Short b) { return float(a) != float(b); }
    Short& operator+=(Short b) { return *this = *this + b; }
    Short& operator-=(Short b) { return *this = *this - b; }
    Short& operator*=(Short b) { return *this = *this * b; }
};

}  // namespace emu

using __half = emu::Short<emu::AsHalf>;
using half = __half;
using __nv_bfloat16 = emu::Short<emu::AsBfloat>;
using nv_bfloat16 = __nv_bfloat16;

struct alignas(4) __half2 {
    __half x, y;
    __half2() = default;
    __half2(__half x, __half y) : x(x), y(y) {}
};
using half2 = __half2;
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
    __nv_bfloat162() = default;
    __nv_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) : x(x), y(y) {}
};
using nv_bfloat162 = __nv_bfloat162;

inline float __half2float(__half value) { return value; }
inline __half __float2half(float value) { return value; }
inline __half __float2half_rn(float value) { return value; }
inline float __bfloat162float(__nv_bfloat16 value) { return value; }
inline __nv_bfloat16 __float2bfloat16(float value) { return value; }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return value; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }

template <class T>
uint16_t emu_bits(T value) {
    return value.bits;
}
template <class T>
T emu_of_bits(uint16_t bits) {
    T value;
    value.bits = bits;
    return value;
}
#define __half_as_ushort emu_bits<__half>
#define __bfloat16_as_ushort emu_bits<__nv_bfloat16>
#define __ushort_as_half emu_of_bits<__half>
#define __ushort_as_bfloat16 emu_of_bits<__nv_bfloat16>

// The functions of cuda_fp16.h and cuda_bf16.h share their names.
#define EMU_SHORT_FUNCTIONS(T)                                                \
    inline bool __hgt(T a, T b) { return a > b; }                             \
    inline bool __hlt(T a, T b) { return a < b; }                             \
    inline T __hadd(T a, T b) { return a + b; }                               \
    inline T __hsub(T a, T b) { return a - b; }                               \
    inline T __hmul(T a, T b) { return a * b; }                               \
    inline T __hdiv(T a, T b) { return a / b; }                               \
    inline T __hfma(T a, T b, T c) { return fmaf(a, b, c); }                  \
    inline T __hmax(T a, T b) { return fmaxf(a, b); }                         \
    inline T __hmin(T a, T b) { return fminf(a, b); }                         \
    inline T __habs(T a) { return fabsf(a); }                                 \
    inline bool __hisnan(T a) { return std::isnan(float(a)); }                \
    inline T hexp(T a) { return expf(a); }                                    \
    inline T hexp2(T a) { return exp2f(a); }                                  \
    inline T hlog(T a) { return logf(a); }                                    \
    inline T hlog2(T a) { return log2f(a); }                                  \
    inline T hsqrt(T a) { return sqrtf(a); }                                  \
    inline T hrsqrt(T a) { return 1.0f / sqrtf(a); }                          \
    inline T hcos(T a) { return cosf(a); }                                    \
    inline T hsin(T a) { return sinf(a); }                                    \
    inline T hfloor(T a) { return floorf(a); }                                \
    inline T hceil(T a) { return ceilf(a); }                                  \
    inline T hrint(T a) { return rintf(a); }                                  \
    inline T htrunc(T a) { return truncf(a); }                                \
    inline T htanh(T a) { return tanhf(a); }
EMU_SHORT_FUNCTIONS(__half)
EMU_SHORT_FUNCTIONS(__nv_bfloat16)
