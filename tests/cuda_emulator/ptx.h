// One function for each PTX instruction that generated code may contain: its text with every sign that is no
// letter or digit as `_`, its operands in the order of the text, results by reference.
#pragma once
#include "emulator.h"
#include "half.h"

namespace emu {

void cp_async(uint32_t to, const void* from, unsigned bytes, unsigned source_bytes);
void cp_async_commit();
void cp_async_wait(unsigned groups_left);
float load_shared(uint32_t address);
void store_shared(uint32_t address, float value);
void ldmatrix(uint32_t* r, int matrices, bool transposed, uint32_t address);
void mma(const char* what, Act act, float* const d[4], const uint32_t* a, const uint32_t (&b)[2], const float* c);
void mma(const char* what, Act act, float* const d[4], const uint32_t* a, const uint32_t (&b)[4], const float* c,
         uint32_t metadata);
extern const Act kMmaF16, kMmaBf16, kMmaTf32, kMmaSpF16[2], kMmaSpBf16[2];

}  // namespace emu

// Section: asynchronous copies

inline void ptx_cp_async_ca_shared_global(uint32_t to, const void* from, unsigned bytes, unsigned source_bytes) {
    emu::cp_async(to, from, bytes, source_bytes);
}
inline void ptx_cp_async_ca_shared_global(uint32_t to, const void* from, unsigned bytes) {
    emu::cp_async(to, from, bytes, bytes);
}
#define ptx_cp_async_cg_shared_global ptx_cp_async_ca_shared_global
#define ptx_cp_async_cg_shared_global_L2_128B ptx_cp_async_ca_shared_global
inline void ptx_cp_async_commit_group() { emu::cp_async_commit(); }
inline void ptx_cp_async_wait_group(unsigned groups_left) { emu::cp_async_wait(groups_left); }
inline void ptx_cp_async_wait_all() {
    emu::cp_async_commit();
    emu::cp_async_wait(0);
}

// Section: plain accesses

inline void ptx_ld_shared_f32(float& to, uint32_t address) { to = emu::load_shared(address); }
inline void ptx_st_shared_f32(uint32_t address, float value) { emu::store_shared(address, value); }

// Section: conversions; those to float are exact, those to 16 bits round to nearest, ties to even

inline void ptx_cvt_rn_bf16_f32(uint16_t& to, float from) { to = emu::AsBfloat::round(from); }
inline void ptx_cvt_rn_f16_f32(uint16_t& to, float from) { to = emu::AsHalf::round(from); }
// Two numbers in a word, the first one in its upper half.
inline void ptx_cvt_rn_bf16x2_f32(uint32_t& to, float high, float low) {
    to = uint32_t(emu::AsBfloat::round(high)) << 16 | emu::AsBfloat::round(low);
}
inline void ptx_cvt_rn_f16x2_f32(uint32_t& to, float high, float low) {
    to = uint32_t(emu::AsHalf::round(high)) << 16 | emu::AsHalf::round(low);
}
// The device is within 2^-22; results below the smallest normal number are 0.
inline void ptx_ex2_approx_ftz_f32(float& to, float x) {
    to = exp2f(x);
    if (std::fpclassify(to) == FP_SUBNORMAL) to = 0;
}
inline void ptx_cvt_f32_f16(float& to, uint16_t from) { to = emu::AsHalf::widen(from); }
// To nearest, ties away from zero; a NaN stays one.
inline void ptx_cvt_rna_tf32_f32(uint32_t& to, float from) {
    uint32_t bits = bits_of_float(from);
    to = std::isnan(from) ? 0x7fffffffu : (bits + 0x1000) & ~0x1fffu;
}

// Section: bytes

// Byte i of the result is that of b:a which four bits of the selector name, of which the upper one asks for a sign.
inline void ptx_prmt_b32(uint32_t& to, uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t bytes = uint64_t(b) << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        if (selector >> (i * 4) & 8) emu::fail("prmt: selector %x asks for a sign, which nothing here means", selector);
        result |= uint32_t(bytes >> ((selector >> (i * 4) & 7) * 8) & 0xff) << (i * 8);
    }
    to = result;
}

// Section: ldmatrix

#define EMU_LDMATRIX(suffix, transposed)                                                                       \
    inline void ptx_ldmatrix_sync_aligned_m8n8_x1##suffix(uint32_t& r0, uint32_t p) {                          \
        emu::ldmatrix(&r0, 1, transposed, p);                                                                  \
    }                                                                                                          \
    inline void ptx_ldmatrix_sync_aligned_m8n8_x2##suffix(uint32_t& r0, uint32_t& r1, uint32_t p) {            \
        uint32_t r[2];                                                                                         \
        emu::ldmatrix(r, 2, transposed, p);                                                                    \
        r0 = r[0], r1 = r[1];                                                                                  \
    }                                                                                                          \
    inline void ptx_ldmatrix_sync_aligned_m8n8_x4##suffix(uint32_t& r0, uint32_t& r1, uint32_t& r2, uint32_t& r3, \
                                                          uint32_t p) {                                        \
        uint32_t r[4];                                                                                         \
        emu::ldmatrix(r, 4, transposed, p);                                                                    \
        r0 = r[0], r1 = r[1], r2 = r[2], r3 = r[3];                                                            \
    }
EMU_LDMATRIX(_shared_b16, false)
EMU_LDMATRIX(_trans_shared_b16, true)

// Section: matrix instructions

#define EMU_MMA(name, act)                                                                                     \
    inline void ptx_##name(float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2,  \
                           uint32_t a3, uint32_t b0, uint32_t b1, float c0, float c1, float c2, float c3) {    \
        float* const d[] = {&d0, &d1, &d2, &d3};                                                               \
        const uint32_t a[] = {a0, a1, a2, a3}, b[] = {b0, b1};                                                 \
        const float c[] = {c0, c1, c2, c3};                                                                    \
        emu::mma(#name, act, d, a, b, c);                                                                      \
    }
EMU_MMA(mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32, emu::kMmaF16)
EMU_MMA(mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32, emu::kMmaBf16)
EMU_MMA(mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32, emu::kMmaTf32)

#define EMU_MMA_SP(name, acts)                                                                                 \
    inline void ptx_##name(float& d0, float& d1, float& d2, float& d3, uint32_t a0, uint32_t a1, uint32_t a2,  \
                           uint32_t a3, uint32_t b0, uint32_t b1, uint32_t b2, uint32_t b3, float c0, float c1, \
                           float c2, float c3, uint32_t metadata, int selector) {                              \
        float* const d[] = {&d0, &d1, &d2, &d3};                                                               \
        const uint32_t a[] = {a0, a1, a2, a3}, b[] = {b0, b1, b2, b3};                                         \
        const float c[] = {c0, c1, c2, c3};                                                                    \
        emu::mma(#name, acts[selector], d, a, b, c, metadata);                                                 \
    }
EMU_MMA_SP(mma_sp__ordered_metadata_sync_aligned_m16n8k32_row_col_f32_f16_f16_f32, emu::kMmaSpF16)
EMU_MMA_SP(mma_sp__ordered_metadata_sync_aligned_m16n8k32_row_col_f32_bf16_bf16_f32, emu::kMmaSpBf16)
