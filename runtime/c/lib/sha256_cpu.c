// sha256_cpu.c - SHA-256 by the instructions that x86-64 and Armv8 CPUs may have for it
//
// Their rounds wait for each other, so two independent messages take little longer than one.

#include "lib.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define WITH_SHA static inline __attribute__((target("sha,sse4.1")))

typedef __m128i quad; // four words

static bool in_cpu(void) {
    return cpu_has((span){(const uint8_t *)"sha", 3}) && cpu_has((span){(const uint8_t *)"sse4.1", 6});
}

WITH_SHA quad load(const void *p) { return _mm_loadu_si128(p); }
WITH_SHA void store(void *p, quad q) { _mm_storeu_si128(p, q); }
WITH_SHA quad add(quad a, quad b) { return _mm_add_epi32(a, b); }

WITH_SHA quad load_message(const uint8_t *p) {
    return _mm_shuffle_epi8(load(p), _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203));
}

// The next four words of the message schedule after those of w.
WITH_SHA quad extend(const quad w[4]) {
    quad sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[0], w[1]), _mm_alignr_epi8(w[3], w[2], 4));
    return _mm_sha256msg2_epu32(sum, w[3]);
}

// Four rounds; the instructions want the state as (f e b a) and (h g d c), lowest word first.
WITH_SHA void rounds(quad s[2], quad w) {
    s[1] = _mm_sha256rnds2_epu32(s[1], s[0], w);
    s[0] = _mm_sha256rnds2_epu32(s[0], s[1], _mm_shuffle_epi32(w, 0x0e));
}

WITH_SHA void enter(quad s[2], const uint32_t state[8]) {
    quad badc = _mm_shuffle_epi32(load(state), 0xb1), hgfe = _mm_shuffle_epi32(load(state + 4), 0x1b);
    s[0] = _mm_alignr_epi8(badc, hgfe, 8);
    s[1] = _mm_blend_epi16(hgfe, badc, 0xf0);
}

WITH_SHA void leave(const quad s[2], uint32_t state[8]) {
    quad abef = _mm_shuffle_epi32(s[0], 0x1b), ghcd = _mm_shuffle_epi32(s[1], 0xb1);
    store(state, _mm_blend_epi16(abef, ghcd, 0xf0));
    store(state + 4, _mm_alignr_epi8(ghcd, abef, 8));
}

#elif defined(__aarch64__)

#include <arm_neon.h>
#include <sys/auxv.h>

#define WITH_SHA static inline __attribute__((target("+sha2")))

typedef uint32x4_t quad;

static bool in_cpu(void) { return getauxval(AT_HWCAP) & 1u << 6; } // HWCAP_SHA2

WITH_SHA quad load(const void *p) { return vld1q_u32(p); }
WITH_SHA void store(void *p, quad q) { vst1q_u32(p, q); }
WITH_SHA quad add(quad a, quad b) { return vaddq_u32(a, b); }
WITH_SHA quad load_message(const uint8_t *p) { return vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(p))); }
WITH_SHA quad extend(const quad w[4]) { return vsha256su1q_u32(vsha256su0q_u32(w[0], w[1]), w[2], w[3]); }

WITH_SHA void rounds(quad s[2], quad w) {
    quad abcd = s[0];
    s[0] = vsha256hq_u32(s[0], s[1], w);
    s[1] = vsha256h2q_u32(s[1], abcd, w);
}

WITH_SHA void enter(quad s[2], const uint32_t state[8]) { s[0] = load(state), s[1] = load(state + 4); }
WITH_SHA void leave(const quad s[2], uint32_t state[8]) { store(state, s[0]), store(state + 4, s[1]); }

#endif

#ifdef WITH_SHA

typedef struct stream {
    quad state[2], w[4];
    const uint8_t *at;
} stream;

// Rounds 4 i to 4 i + 3 of one block.
WITH_SHA void four_rounds(stream *s, int i) {
    quad w = i < 4 ? load_message(s->at + 16 * i) : extend(s->w);
    s->w[0] = s->w[1], s->w[1] = s->w[2], s->w[2] = s->w[3], s->w[3] = w;
    rounds(s->state, add(w, load(sha256_constants + 4 * i)));
}

#define EACH(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12) f(13) f(14) f(15)
#define ONE(i) four_rounds(&a, i);
#define TWO(i) four_rounds(&a, i), four_rounds(&b, i);

WITH_SHA void end_block(stream *s, const quad before[2]) {
    s->state[0] = add(s->state[0], before[0]);
    s->state[1] = add(s->state[1], before[1]);
    s->at += 64;
}

WITH_SHA void one(uint32_t state[8], const uint8_t *data, size_t count) {
    stream a = {.at = data};
    enter(a.state, state);
    while (count--) {
        quad before[2] = {a.state[0], a.state[1]};
        EACH(ONE)
        end_block(&a, before);
    }
    leave(a.state, state);
}

WITH_SHA void two(uint32_t state[2][8], const uint8_t *const data[2], size_t count) {
    stream a = {.at = data[0]}, b = {.at = data[1]};
    enter(a.state, state[0]), enter(b.state, state[1]);
    while (count--) {
        quad before_a[2] = {a.state[0], a.state[1]}, before_b[2] = {b.state[0], b.state[1]};
        EACH(TWO)
        end_block(&a, before_a), end_block(&b, before_b);
    }
    leave(a.state, state[0]), leave(b.state, state[1]);
}

const sha256_code *sha256_cpu(void) {
    static const sha256_code code = {one, two};
    return in_cpu() ? &code : 0;
}

#else

const sha256_code *sha256_cpu(void) { return 0; }

#endif
