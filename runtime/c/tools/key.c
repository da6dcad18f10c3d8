// key.c - public keys out of PEM files

#include "device.h"

static int sextet(char c) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *found = c ? strchr(digits, c) : 0;
    return found ? (int)(found - digits) : -1;
}

// The base64 of 12 bytes that are always the same (RFC 8410), then the key.
bool read_key(const char *path, uint8_t key[32]) {
    static const char head[] = "MCowBQYDK2VwAyEA";
    const char *why;
    span text = read_file(path, &why);
    const char *at = text.data ? strstr((const char *)text.data, head) : 0;
    if (!at) return false;
    uint32_t bits = 0;
    int count = 0, used = 0;
    for (at += strlen(head); used < 32; at++) {
        int value = sextet(*at);
        if (value < 0) break;
        bits = bits << 6 | (uint32_t)value;
        count += 6;
        if (count >= 8) key[used++] = (uint8_t)(bits >> (count -= 8));
    }
    drop_file(text);
    return used == 32;
}
