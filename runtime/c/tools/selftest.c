// selftest.c - the stored sample of a model, run here: is what comes out what it was when the model was compiled?

#include <math.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "device.h"

#define MAX_RUNS 101
#define ENOUGH 0.5 // seconds of timed runs

// Exponent and fraction are where a float's are after a shift; the exponents count from 15 and from 127.
static double from_float16(uint16_t half) {
    uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
    if (bits >= 0x0f800000u) return bits > 0x0f800000u ? NAN : half >> 15 ? -INFINITY : INFINITY;
    float magnitude;
    memcpy(&magnitude, &bits, sizeof bits);
    return (half >> 15 ? -1.0 : 1.0) * 0x1p112 * magnitude;
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
    size_t size = t->dtype[5] == '1' ? 2 : t->dtype[5] == '3' ? 4 : 8; // float16, float32, float64
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

static int time_runs(sparsec_context *context, uint64_t memory, sparsec_error *error) {
    double seconds[MAX_RUNS], start = now(); // ascending
    int runs = 0;
    while (runs < MAX_RUNS && (runs < 3 || now() - start < ENOUGH)) {
        double before = now();
        if (sparsec_run(context, error)) return complain("run", error->message);
        double taken = now() - before;
        int at = runs++;
        for (; at && seconds[at - 1] > taken; at--) seconds[at] = seconds[at - 1];
        seconds[at] = taken;
    }
    unsigned long long microseconds = (unsigned long long)(1e6 * seconds[runs / 2] + 0.5);
    say(STDOUT_FILENO, "ok  a run takes %llu.%03u ms (median of %d)", microseconds / 1000,
        (unsigned)(microseconds % 1000), runs);
    if (memory) say(STDOUT_FILENO, " and %llu kB", (unsigned long long)(memory + 999) / 1000);
    say(STDOUT_FILENO, "\n");
    return 0;
}

// A non-negative number as %.1e writes it.
typedef struct scientific {
    char text[12];
} scientific;

static scientific scientific_of(double x) {
    scientific s = {"inf"};
    if (!isfinite(x)) return s;
    int exponent = 0;
    for (; x >= 9.95; exponent++) x /= 10;
    for (; x && x < 0.995; exponent--) x *= 10;
    unsigned tenths = (unsigned)(10 * x + 0.5);
    if (tenths == 100) tenths = 10, exponent++; // at the border, where both loops round
    snprintf(s.text, sizeof s.text, "%u.%ue%s%02u", tenths / 10, tenths % 10, exponent < 0 ? "-" : "+",
             (unsigned)abs(exponent));
    return s;
}

// Gives the inputs; returns where the outputs begin, NULL after a complaint.
static const uint8_t *set_inputs(const subject *s, sparsec_context *context) {
    sparsec_error error;
    uint32_t inputs = sparsec_input_count(s->model), outputs = sparsec_output_count(s->model);
    size_t size = outputs * sizeof(double);
    for (uint32_t i = 0; i < inputs; i++) size += sparsec_input(s->model, i)->bytes;
    size_t first = size;
    for (uint32_t i = 0; i < outputs; i++) size += sparsec_output(s->model, i)->bytes;
    if (!s->sample.data || s->sample.size != size) {
        complain("sample", "the model has no sample of its inputs and outputs");
        return 0;
    }
    const uint8_t *at = s->sample.data + outputs * sizeof(double);
    for (uint32_t i = 0; i < inputs; i++) {
        size_t bytes = sparsec_input(s->model, i)->bytes;
        if (sparsec_set_input(context, i, at, bytes, &error)) return complain("sample", error.message), (void *)0;
        at += bytes;
    }
    return s->sample.data + first;
}

int self_test(const subject *s) {
    sparsec_error error;
    sparsec_context *context = new_context(s);
    const uint8_t *expected = context ? set_inputs(s, context) : 0;
    if (!expected) return 1;
    if (sparsec_run(context, &error)) return complain("run", error.message);
    int wrong = 0;
    for (uint32_t i = 0; i < sparsec_output_count(s->model); i++) {
        const sparsec_tensor *t = sparsec_output(s->model, i);
        double allowed, found = error_of(t, sparsec_output_data(context, i), expected);
        memcpy(&allowed, s->sample.data + i * sizeof allowed, sizeof allowed);
        bool within = found <= allowed;
        say(STDOUT_FILENO, "%s  output %s: %s from the stored one, %s allowed\n", within ? "ok" : "--", t->name,
            scientific_of(found).text, scientific_of(allowed).text);
        expected += t->bytes;
        wrong += !within;
    }
    if (wrong) return complain("selftest", "the model computes something else here");
    return time_runs(context, sparsec_context_size(s->model, 1), &error);
}
