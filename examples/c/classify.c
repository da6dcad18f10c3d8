// classify.c - run a compiled model from C and print its outputs
//
//     cc classify.c -I../../runtime/c -L. -lsparsec -lpthread -ldl -o classify
//     ./classify model.sparsec [FILE ...]
//
// Each FILE holds the raw bytes of one input, in the model's order.  Inputs without a file are zeros.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sparsec.h"

static int say(const char *what, const char *why) {
    fprintf(stderr, "classify: %s: %s\n", what, why);
    return 1;
}

// `bytes` zeros, or what is in the file; NULL if the file does not have exactly that many.
static void *read_input(const char *path, size_t bytes) {
    void *data = calloc(1, bytes + 1);
    if (!path || !data) return data;
    FILE *file = fopen(path, "rb");
    size_t found = file ? fread(data, 1, bytes + 1, file) : 0;
    if (file) fclose(file);
    if (file && found == bytes) return data;
    free(data);
    return NULL;
}

static double element(const void *data, const char *dtype, size_t i) {
    if (!strcmp(dtype, "float32")) return ((const float *)data)[i];
    if (!strcmp(dtype, "float64")) return ((const double *)data)[i];
    if (!strcmp(dtype, "int64")) return (double)((const int64_t *)data)[i];
    if (!strcmp(dtype, "int32")) return ((const int32_t *)data)[i];
    return ((const unsigned char *)data)[i];
}

static void print_output(const sparsec_tensor *output, const void *data) {
    size_t count = 1;
    printf("%s: %s[", output->name, output->dtype);
    for (int axis = 0; axis < output->ndim; axis++) {
        count *= (size_t)output->shape[axis];
        printf("%s%lld", axis ? ", " : "", (long long)output->shape[axis]);
    }
    printf("]");
    for (size_t i = 0; i < count; i++) printf(" %.9g", element(data, output->dtype, i));
    printf("\n");
}

int main(int argc, char **argv) {
    sparsec_error error;
    sparsec_model *model = NULL;
    sparsec_context *context = NULL;
    if (argc < 2) {
        fprintf(stderr, "usage: classify MODEL.sparsec [INPUT.raw ...]\n");
        return 2;
    }
    if (sparsec_open(argv[1], NULL, &model, &error)) return say(argv[1], error.message);
    if (sparsec_context_create(model, 0, &context, &error)) return say(argv[1], error.message);

    for (uint32_t i = 0; i < sparsec_input_count(model); i++) {
        const sparsec_tensor *input = sparsec_input(model, i);
        const char *path = argc > 2 + (int)i ? argv[2 + i] : NULL;
        void *data = read_input(path, input->bytes);
        if (!data) return say(path ? path : input->name, "does not hold the bytes of this input");
        if (sparsec_set_input(context, i, data, input->bytes, &error)) return say(input->name, error.message);
        free(data);
    }
    if (sparsec_run(context, &error)) return say(argv[1], error.message);
    for (uint32_t i = 0; i < sparsec_output_count(model); i++)
        print_output(sparsec_output(model, i), sparsec_output_data(context, i));

    sparsec_context_free(context);
    sparsec_close(model);
    return 0;
}
