// Every call of sparsec.h on the model of conftest.py; test_c_api.py knows what it must print.

#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "sparsec.h"

static int counting, count;
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *malloc(size_t n) { count += counting; return __libc_malloc(n); }
void *calloc(size_t m, size_t n) { count += counting; return __libc_calloc(m, n); }
void *realloc(void *p, size_t n) { count += counting; return __libc_realloc(p, n); }

static sparsec_error error;
static void say(const char *what, int status) { printf("%s: %d %s\n", what, status, status ? error.message : ""); }

int main(int argc, char **argv) {
    (void)argc;
    sparsec_model *model = 0, *other = 0;
    sparsec_context *context = 0;
    static _Alignas(64) char x[2049 * 2], mask[17], y[600], odd[600];
    say("open", sparsec_open(argv[1], 0, &model, &error));
    FILE *file = fopen(argv[1], "rb");
    say("fd", sparsec_open_fd(fileno(file), 0, &other, &error));
    sparsec_close(other);
    say("memory", sparsec_open_memory(x + 1, 10, 0, &other, &error));
    sparsec_close(0);
    say("threads", sparsec_context_create(model, -1, &context, &error));
    say("create", sparsec_context_create(model, 2, &context, &error));
    printf("%d %s %u %u %u\n", sparsec_threads(context), sparsec_level(model), sparsec_input_count(model),
           sparsec_output_count(model), sparsec_step_count(model));
    printf("%s %d\n", sparsec_input(model, 1)->name, sparsec_input(model, 2) == 0 && sparsec_output(model, 9) == 0);
    printf("%s %d\n", sparsec_step_label(model, 2), sparsec_step_label(model, 3) == 0);
    say("nothing given", sparsec_run(context, &error));
    say("size", sparsec_bind_input(context, 0, x, 3, &error));
    say("index", sparsec_bind_output(context, 7, y, 3, &error));
    say("null", sparsec_bind_input(context, 0, 0, 2048, &error));
    say("quiet", sparsec_bind_input(context, 0, x, 3, 0) != SPARSEC_E_INPUT);
    mask[2] = mask[3] = 1;
    say("x", sparsec_bind_input(context, 0, x, 2048, &error));
    say("mask", sparsec_set_input(context, 1, mask, 16, &error));
    mask[4] = 1; // it was copied
    say("run", sparsec_run(context, &error));
    const float *own = sparsec_output_data(context, 0);
    printf("kept %lld\n", *(const long long *)sparsec_output_data(context, 1));
    say("y", sparsec_bind_output(context, 0, y, 512, &error));
    say("run", sparsec_run(context, &error));
    printf("in place %d\n", sparsec_output_data(context, 0) == y && !memcmp(own, y, 512));
    say("odd", sparsec_bind_output(context, 0, odd + 4, 512, &error));
    say("x", sparsec_bind_input(context, 0, memmove(x + 4, x, 2048), 2048, &error));
    counting = 1;
    int failed = 0;
    double seconds[3];
    for (int i = 0; i < 5000; i++) failed |= sparsec_run(context, &error) | sparsec_profile(context, seconds, &error);
    counting = 0;
    printf("copied %d\n", !failed && sparsec_output_data(context, 0) == odd + 4 && !memcmp(odd + 4, y, 512));
    printf("allocations %d, timed %d\n", count, seconds[0] > 0 && seconds[1] >= 0 && seconds[2] >= 0);
    say("own", sparsec_bind_output(context, 0, 0, 512, &error));
    printf("own again %d %d\n", sparsec_output_data(context, 0) == own, sparsec_output_data(context, 2) == 0);
    sparsec_context_free(context);
    sparsec_context_free(0);
    sparsec_close(model);
    return 0;
}
