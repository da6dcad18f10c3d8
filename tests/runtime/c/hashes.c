// hashes.c - the two ways to compute SHA-256 agree, one message or two at a time; RFC 8032's third vector

#include "check.h"
#include "lib/lib.h"

static uint8_t data[1000];

static void from_hexadecimal(const char *text, uint8_t *bytes) {
    for (; *text; text += 2) CHECK(sscanf(text, "%2hhx", bytes++) == 1);
}

int main(void) {
    const sha256_code *cpu = sha256_cpu() ? sha256_cpu() : &sha256_portable;
    uint8_t one[32], two[2][32], of_empty[32];
    from_hexadecimal("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", of_empty);
    for (size_t n = 0; n < sizeof data; n += 7) {
        data[n] = (uint8_t)n;
        sha256(&sha256_portable, (span){data, n}, one);
        if (!n) CHECK(!memcmp(one, of_empty, 32));
        sha256_two(cpu, (const span[]){{data, n}, {data, n}}, two);
        CHECK(!memcmp(one, two[0], 32) && !memcmp(one, two[1], 32));
        sha256_two(&sha256_portable, (const span[]){{data, n}, {data, n / 3}}, two);
        CHECK(!memcmp(one, two[0], 32));
    }

    uint8_t key[32], signature[64], message[] = {0xaf, 0x82};
    from_hexadecimal("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", key);
    from_hexadecimal("6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
                     "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
                     signature);
    CHECK(ed25519_verify(key, signature, (span){message, 2}));
    CHECK(!ed25519_verify(key, signature, (span){message, 1}));
    for (int i = 0; i < 64; i++) {
        signature[i] ^= 0x80;
        CHECK(!ed25519_verify(key, signature, (span){message, 2}));
        signature[i] ^= 0x80;
    }
    memset(key, 0xff, 32); // no point's y
    CHECK(!ed25519_verify(key, signature, (span){message, 2}));
    puts("ok");
    return 0;
}
