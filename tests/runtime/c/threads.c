// threads.c - eight threads run one model, each with its own context and input: threads ARTIFACT COUNT
//
// Every output of every run must be, bit by bit, that of a run alone.  Contexts of odd threads have two threads
// themselves.

#include <pthread.h>

#include "check.h"

#define THREADS 8

static sparsec_model *model;
static int count;
static char *expected[THREADS]; // all outputs, one after the other

static sparsec_context *ready(int thread) {
    sparsec_context *c = 0;
    OK(sparsec_context_create(model, 1 + thread % 2, &c, error));
    for (uint32_t i = 0; i < sparsec_input_count(model); i++) {
        const sparsec_tensor *input = sparsec_input(model, i);
        unsigned char *data = calloc(1, input->bytes);
        CHECK(data);
        if (!strcmp(input->dtype, "float32")) // different small numbers; zeros for indices and masks
            for (size_t k = 0; k < input->bytes / 4; k++)
                ((float *)(void *)data)[k] = (float)((k * 7 + (size_t)thread * 13) % 17) / 16.0f;
        OK(sparsec_set_input(c, i, data, input->bytes, error));
        free(data);
    }
    return c;
}

static size_t outputs_size(void) {
    size_t bytes = 0;
    for (uint32_t i = 0; i < sparsec_output_count(model); i++) bytes += sparsec_output(model, i)->bytes;
    return bytes;
}

static void *run_many(void *argument) {
    int thread = (int)((char **)argument - expected);
    sparsec_context *c = ready(thread);
    for (int i = 0; i < count; i++) {
        OK(sparsec_run(c, error));
        const char *at = expected[thread];
        for (uint32_t k = 0; k < sparsec_output_count(model); at += sparsec_output(model, k++)->bytes)
            CHECK(!memcmp(at, sparsec_output_data(c, k), sparsec_output(model, k)->bytes));
        OK(sparsec_reset(c, error));
    }
    sparsec_context_free(c);
    return 0;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    count = atoi(argv[2]);
    OK(sparsec_open(argv[1], 0, &model, error));
    for (int t = 0; t < THREADS; t++) {
        sparsec_context *c = ready(t);
        OK(sparsec_run(c, error));
        char *at = expected[t] = malloc(outputs_size());
        CHECK(at);
        for (uint32_t k = 0; k < sparsec_output_count(model); at += sparsec_output(model, k++)->bytes)
            memcpy(at, sparsec_output_data(c, k), sparsec_output(model, k)->bytes);
        sparsec_context_free(c);
    }
    pthread_t threads[THREADS];
    for (int t = 0; t < THREADS; t++) CHECK(!pthread_create(threads + t, 0, run_many, expected + t));
    for (int t = 0; t < THREADS; t++) pthread_join(threads[t], 0);
    for (int t = 0; t < THREADS; t++) free(expected[t]);
    sparsec_close(model);
    puts("ok");
    return 0;
}
