// What one core can do: multiply-adds on registers, reads and copies of buffers of every cache.  Prints JSON.
#include <immintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#ifdef __AVX512F__
typedef __m512 vec;
#define LANES 16
#define LOAD _mm512_load_ps
#define FMA _mm512_fmadd_ps
#define ADD _mm512_add_ps
#define STREAM _mm512_stream_ps
#define SET1 _mm512_set1_ps
#else
typedef __m256 vec;
#define LANES 8
#define LOAD _mm256_load_ps
#define FMA _mm256_fmadd_ps
#define ADD _mm256_add_ps
#define STREAM _mm256_stream_ps
#define SET1 _mm256_set1_ps
#endif
#define CHAINS 12 // latency 4, two a cycle: 8 would do

// The compiler must assume that this reads and changes the accumulator.
#define KEEP(v) __asm__ volatile("" : "+v"(v))

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void multiply_add(void) {
    vec acc[CHAINS], factor = SET1(0.999f);
    for (int i = 0; i < CHAINS; i++) acc[i] = SET1(i);
    for (int k = 0; k < 4000000; k++)
#pragma clang loop unroll(full)
        for (int i = 0; i < CHAINS; i++) {
            acc[i] = FMA(acc[i], factor, factor);
            KEEP(acc[i]);
        }
}

static void read_all(const float *x, size_t n) {
    vec acc[8];
    for (int i = 0; i < 8; i++) acc[i] = SET1(0);
    for (size_t k = 0; k < n; k += 8 * LANES)
#pragma clang loop unroll(full)
        for (int i = 0; i < 8; i++) acc[i] = ADD(acc[i], LOAD(x + k + i * LANES));
    for (int i = 0; i < 8; i++) KEEP(acc[i]);
}

static void stream_all(float *y, const float *x, size_t n) {
    for (size_t k = 0; k < n; k += LANES) STREAM(y + k, LOAD(x + k));
    _mm_sfence();
}

// Bytes moved a second, the best of the repetitions that fit a fifth of a second, at least three.
static double rate(int kind, float *y, float *x, size_t bytes) {
    size_t n = bytes / sizeof(float), inner = bytes < (8u << 20) ? (32u << 20) / bytes : 1;
    double best = 1e9, stop = now() + 0.2;
    for (int count = 0; count < 3 || now() < stop; count++) {
        double start = now();
        for (size_t i = 0; i < inner; i++) {
            if (kind == 0) read_all(x, n);
            if (kind == 1) memcpy(y, x, bytes);
            if (kind == 2) stream_all(y, x, n);
            __asm__ volatile("" ::: "memory");
        }
        double took = (now() - start) / inner;
        best = took < best ? took : best;
    }
    return (kind ? 2.0 : 1.0) * bytes / best;
}

int main(void) {
    size_t most = 128u << 20;
    float *x = aligned_alloc(2u << 20, most), *y = aligned_alloc(2u << 20, most);
    madvise(x, most, MADV_HUGEPAGE), madvise(y, most, MADV_HUGEPAGE);
    memset(x, 0, most), memset(y, 0, most);
    double best = 1e9;
    for (int i = 0; i < 5; i++) {
        double start = now();
        multiply_add();
        double took = now() - start;
        best = took < best ? took : best;
    }
    printf("{\"flops\": %.4g", 2.0 * LANES * CHAINS * 4000000 / best);
    // Half of each cache for a read, a quarter for each side of a copy.
    printf(", \"read\": {\"L1\": %.4g, \"L2\": %.4g, \"L3\": %.4g, \"DRAM\": %.4g}", rate(0, y, x, 16u << 10),
           rate(0, y, x, 512u << 10), rate(0, y, x, 8u << 20), rate(0, y, x, most));
    printf(", \"copy\": {\"L1\": %.4g, \"L2\": %.4g, \"L3\": %.4g, \"DRAM\": %.4g}", rate(1, y, x, 8u << 10),
           rate(1, y, x, 256u << 10), rate(1, y, x, 4u << 20), rate(1, y, x, most));
    printf(", \"stream\": {\"DRAM\": %.4g}}\n", rate(2, y, x, most));
    return 0;
}
