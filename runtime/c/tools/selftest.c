// selftest.c - the stored sample of a model, run here: is what comes out what it was when the model was compiled?

#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "device.h"

#define MAX_RUNS 101
#define ENOUGH 0.5 // seconds of timed runs

static double from_float16(uint16_t bits) {
    int exponent = bits >> 10 & 31;
    double fraction = bits & 1023, sign = bits >> 15 ? -1 : 1;
    if (exponent == 31) return fraction != 0 ? NAN : sign * INFINITY;
    return sign * (exponent ? ldexp(1 + fraction / 1024, exponent - 15) : ldexp(fraction, -24));
}

// Element i of a floating-point tensor; `size` is that of an element.
static double element(const uint8_t *data, size_t size, size_t i) {
    float single;
    double value;
    uint16_t half;
    data += size * i;
    switch (size) {
    case 2: return memcpy(&half, data, size), from_float16(half);
    case 4: return memcpy(&single, data, size), single;
    default: return memcpy(&value, data, size), value;
    }
}

// The largest error of an output; infinite where values that must be equal are not.
static double error_of(const sparsec_tensor *t, const uint8_t *found, const uint8_t *expected) {
    if (strncmp(t->dtype, "float", 5)) return memcmp(found, expected, t->bytes) ? INFINITY : 0;
    size_t size = (size_t)atoi(t->dtype + 5) / 8;
    double worst = 0;
    for (size_t i = 0; i < t->bytes / size; i++) {
        double a = element(found, size, i), b = element(expected, size, i);
        if (a == b || (isnan(a) && isnan(b))) continue;
        double error = fabs(a - b);
        if (!(error <= worst)) worst = isnan(error) ? INFINITY : error;
    }
    return worst;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int time_runs(sparsec_context *context, uint64_t memory, sparsec_error *error) {
    double seconds[MAX_RUNS], start = now();
    int runs = 0;
    while (runs < MAX_RUNS && (runs < 3 || now() - start < ENOUGH)) {
        double before = now();
        if (sparsec_run(context, error)) return complain("run", error->message);
        seconds[runs++] = now() - before;
    }
    qsort(seconds, (size_t)runs, sizeof *seconds, ascending);
    printf("ok  a run takes %.3f ms (median of %d) and %llu kB\n", 1e3 * seconds[runs / 2], runs,
           (unsigned long long)(memory + 999) / 1000);
    return 0;
}

// Gives the inputs; returns where the outputs begin, NULL if the sample has another size.
static const uint8_t *set_inputs(const subject *s, sparsec_context *context, sparsec_error *error) {
    uint32_t inputs = sparsec_input_count(s->model), outputs = sparsec_output_count(s->model);
    size_t size = outputs * sizeof(double);
    for (uint32_t i = 0; i < inputs; i++) size += sparsec_input(s->model, i)->bytes;
    size_t first = size;
    for (uint32_t i = 0; i < outputs; i++) size += sparsec_output(s->model, i)->bytes;
    if (!s->sample.data || s->sample.size != size) {
        fail(error, SPARSEC_E_ARTIFACT, "the model has no sample of its inputs and outputs");
        return 0;
    }
    const uint8_t *at = s->sample.data + outputs * sizeof(double);
    for (uint32_t i = 0; i < inputs; i++) {
        size_t bytes = sparsec_input(s->model, i)->bytes;
        if (sparsec_set_input(context, i, at, bytes, error)) return 0;
        at += bytes;
    }
    return s->sample.data + first;
}

int self_test(const subject *s) {
    sparsec_error error;
    sparsec_context *context = new_context(s, &error);
    if (!context) return complain("context", error.message);
    const uint8_t *expected = set_inputs(s, context, &error);
    if (!expected) return complain("sample", error.message);
    if (sparsec_run(context, &error)) return complain("run", error.message);
    int wrong = 0;
    for (uint32_t i = 0; i < sparsec_output_count(s->model); i++) {
        const sparsec_tensor *t = sparsec_output(s->model, i);
        double allowed, found = error_of(t, sparsec_output_data(context, i), expected);
        memcpy(&allowed, s->sample.data + i * sizeof allowed, sizeof allowed);
        bool within = found <= allowed;
        printf("%s  output %s: %.1e from the stored one, %.1e allowed\n", within ? "ok" : "--", t->name, found, allowed);
        expected += t->bytes;
        wrong += !within;
    }
    if (wrong) return complain("selftest", "the model computes something else here");
    return time_runs(context, sparsec_context_size(s->model, 1), &error);
}
