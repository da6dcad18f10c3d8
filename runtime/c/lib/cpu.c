// cpu.c - CPU features by LLVM's names, asked from the CPU itself

#include "lib.h"

#if defined(__x86_64__)

#include <cpuid.h>

enum { EAX, EBX, ECX, EDX };

// Register state that the system must save for a feature (bits of XCR0).
#define SSE 0x2u
#define AVX 0x6u
#define AVX512 0xe6u

typedef struct feature {
    char name[11];
    uint32_t leaf;
    uint8_t subleaf, reg, bit, state;
} feature;

static const feature features[] = {
    {"sse3", 1, 0, ECX, 0, SSE},
    {"ssse3", 1, 0, ECX, 9, SSE},
    {"fma", 1, 0, ECX, 12, AVX},
    {"cx16", 1, 0, ECX, 13, SSE},
    {"sse4.1", 1, 0, ECX, 19, SSE},
    {"sse4.2", 1, 0, ECX, 20, SSE},
    {"movbe", 1, 0, ECX, 22, SSE},
    {"popcnt", 1, 0, ECX, 23, SSE},
    {"avx", 1, 0, ECX, 28, AVX},
    {"f16c", 1, 0, ECX, 29, AVX},
    {"bmi", 7, 0, EBX, 3, SSE},
    {"avx2", 7, 0, EBX, 5, AVX},
    {"bmi2", 7, 0, EBX, 8, SSE},
    {"avx512f", 7, 0, EBX, 16, AVX512},
    {"avx512dq", 7, 0, EBX, 17, AVX512},
    {"avx512cd", 7, 0, EBX, 28, AVX512},
    {"avx512bw", 7, 0, EBX, 30, AVX512},
    {"sha", 7, 0, EBX, 29, SSE},
    {"avx512vl", 7, 0, EBX, 31, AVX512},
    {"avx512vnni", 7, 0, ECX, 11, AVX512},
    {"avxvnni", 7, 1, EAX, 4, AVX},
    {"avx512bf16", 7, 1, EAX, 5, AVX512},
    {"sahf", 0x80000001u, 0, ECX, 0, SSE},
    {"lzcnt", 0x80000001u, 0, ECX, 5, SSE},
};

// The states that the system saves: XCR0, or those of every 64-bit system without XSAVE.
static uint32_t saved_states(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & 1u << 27)) return SSE;
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return a;
}

bool cpu_has(span name) {
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        const feature *f = features + i;
        if (strlen(f->name) != name.size || memcmp(f->name, name.data, name.size)) continue;
        uint32_t r[4];
        return __get_cpuid_count(f->leaf, f->subleaf, r + EAX, r + EBX, r + ECX, r + EDX) &&
               (r[f->reg] >> f->bit & 1) && (saved_states() & f->state) == f->state;
    }
    return false;
}

#else

#include <sys/auxv.h>

// What the kernel hands to every process; it names only what it also saves.
static const struct {
    const char *name;
    int bits, bit; // which ones of the auxiliary vector
} features[] = {
#if defined(__aarch64__)
    {"dotprod", AT_HWCAP, 20},
    {"i8mm", AT_HWCAP2, 13},
    {"bf16", AT_HWCAP2, 14},
#elif defined(__arm__)
    {"neon", AT_HWCAP, 12},
    {"vfp4", AT_HWCAP, 16},
#elif defined(__riscv)
    {"v", AT_HWCAP, 'v' - 'a'},
#endif
    {"", AT_HWCAP, 0},
};

bool cpu_has(span name) {
    for (size_t i = 0; name.size && i < sizeof features / sizeof *features; i++)
        if (strlen(features[i].name) == name.size && !memcmp(features[i].name, name.data, name.size))
            return getauxval(features[i].bits) >> features[i].bit & 1;
    return name.size == 0;
}

#endif
