// sha256.c - SHA-256 (FIPS 180-4)

#include "lib.h"

const uint32_t sha256_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

// One round; the eight words keep their places and change their names from round to round.
#define ROUND(a, b, c, d, e, f, g, h, i)                                                                      \
    h += (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + (g ^ (e & (f ^ g))) + sha256_constants[i] + w[i];   \
    d += h;                                                                                                   \
    h += (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) | (c & (a | b)));

static void block(uint32_t state[8], const uint8_t *data) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++, data += 4)
        w[i] = (uint32_t)data[0] << 24 | (uint32_t)data[1] << 16 | (uint32_t)data[2] << 8 | data[3];
    for (int i = 16; i < 64; i++) {
        uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; i += 8) {
        ROUND(a, b, c, d, e, f, g, h, i)
        ROUND(h, a, b, c, d, e, f, g, i + 1)
        ROUND(g, h, a, b, c, d, e, f, i + 2)
        ROUND(f, g, h, a, b, c, d, e, i + 3)
        ROUND(e, f, g, h, a, b, c, d, i + 4)
        ROUND(d, e, f, g, h, a, b, c, i + 5)
        ROUND(c, d, e, f, g, h, a, b, i + 6)
        ROUND(b, c, d, e, f, g, h, a, i + 7)
    }
    const uint32_t s[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; i++) state[i] += s[i];
}

static void one(uint32_t state[8], const uint8_t *data, size_t count) {
    for (; count; count--, data += 64) block(state, data);
}

static void two(uint32_t state[2][8], const uint8_t *const data[2], size_t count) {
    one(state[0], data[0], count);
    one(state[1], data[1], count);
}

const sha256_code sha256_portable = {one, two};

const sha256_code *sha256_fastest(void) {
    const sha256_code *cpu = sha256_cpu();
    return cpu ? cpu : &sha256_portable;
}

static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

// What follows the first `done` bytes, the end mark, and the state as bytes.
static void finish(const sha256_code *code, uint32_t state[8], span data, size_t done, uint8_t digest[32]) {
    size_t whole = (data.size - done) / 64, rest = (data.size - done) % 64;
    code->one(state, data.data + done, whole);
    uint8_t tail[128] = {0};
    if (rest) memcpy(tail, data.data + data.size - rest, rest);
    tail[rest] = 0x80;
    size_t size = rest < 56 ? 64 : 128;
    for (int i = 0; i < 8; i++) tail[size - 1 - (size_t)i] = (uint8_t)((uint64_t)data.size * 8 >> 8 * i);
    code->one(state, tail, size / 64);
    for (int i = 0; i < 32; i++) digest[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}

void sha256(const sha256_code *code, span data, uint8_t digest[32]) {
    uint32_t state[8];
    memcpy(state, start, sizeof start);
    finish(code, state, data, 0, digest);
}

void sha256_two(const sha256_code *code, const span data[2], uint8_t digest[2][32]) {
    uint32_t state[2][8];
    memcpy(state[0], start, sizeof start);
    memcpy(state[1], start, sizeof start);
    size_t both = (data[0].size < data[1].size ? data[0].size : data[1].size) / 64;
    code->two(state, (const uint8_t *const[2]){data[0].data, data[1].data}, both);
    for (int i = 0; i < 2; i++) finish(code, state[i], data[i], both * 64, digest[i]);
}
