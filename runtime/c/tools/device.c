// device.c - the options of both programs, and one inference on files

#include <errno.h>
#include <stdlib.h>

#include "device.h"

sparsec_context *new_context(const subject *s, sparsec_error *error) {
    uint64_t size = sparsec_context_size(s->model, 1);
    void *memory = aligned_alloc(64, (size + 63) & -(uint64_t)64);
    sparsec_context *context = 0;
    if (!memory)
        fail(error, SPARSEC_E_RUN, "no memory for a context: %llu bytes are needed", (unsigned long long)size);
    else if (sparsec_context_create_in(s->model, 1, memory, size, &context, error))
        free(memory);
    return context; // freed by the system when the program ends
}

static int write_output(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    size_t written = file ? fwrite(data, 1, bytes, file) : 0;
    if (!file || (fclose(file) | (written != bytes))) return complain(path, strerror(errno));
    return 0;
}

int run_files(const subject *s, char *const *inputs, int input_count, char *const *outputs, int output_count) {
    sparsec_error error;
    uint32_t wanted = sparsec_input_count(s->model), given = sparsec_output_count(s->model);
    if ((uint32_t)input_count != wanted || (uint32_t)output_count > given) {
        fprintf(stderr, "the model takes %u inputs and gives %u outputs, found %d and %d files\n", wanted, given,
                input_count, output_count);
        return 1;
    }
    sparsec_context *context = new_context(s, &error);
    if (!context) return complain("context", error.message);
    for (uint32_t i = 0; i < wanted; i++) {
        const char *why;
        span data = read_file(inputs[i], &why);
        if (!data.data) return complain(inputs[i], why);
        if (sparsec_set_input(context, i, data.data, data.size, &error)) return complain(inputs[i], error.message);
        free((void *)data.data);
    }
    if (sparsec_run(context, &error)) return complain("run", error.message);
    for (int i = 0; i < output_count; i++) {
        uint32_t index = (uint32_t)i;
        size_t bytes = sparsec_output(s->model, index)->bytes;
        if (write_output(outputs[i], sparsec_output_data(context, index), bytes)) return 1;
    }
    return 0;
}

int device_main(const char *usage, const subject *s, char **args, int count) {
    int inputs = 0, outputs = 0;
    if (count == 1 && !strcmp(args[0], "--selftest")) return self_test(s);
    char **input = calloc((size_t)count + 1, sizeof *input), **output = calloc((size_t)count + 1, sizeof *output);
    if (!input || !output) return complain("arguments", "no memory");
    for (int i = 0; i + 1 < count; i += 2) {
        if (!strcmp(args[i], "--input"))
            input[inputs++] = args[i + 1];
        else if (!strcmp(args[i], "--output"))
            output[outputs++] = args[i + 1];
    }
    if (!count || 2 * (inputs + outputs) != count) {
        fprintf(stderr, "usage: %s --selftest\n       %s --input FILE ... --output FILE ...\n", usage, usage);
        return 2;
    }
    return run_files(s, input, inputs, output, outputs);
}
