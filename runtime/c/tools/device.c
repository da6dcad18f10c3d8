// device.c - the options of both programs, and one inference on files

#include <unistd.h>

#include "device.h"

sparsec_context *new_context(const subject *s) {
    sparsec_error error;
    sparsec_context *context = 0; // its memory goes back to the system when the program ends
    uint64_t size = sparsec_context_size(s->model, 1);
    void *memory = size ? new_memory(size) : 0; // 0: it is not the caller's to give, but a GPU's
    if (size && !memory)
        say(STDERR_FILENO, "context: no memory for a context: %llu bytes are needed\n", (unsigned long long)size);
    else if (size ? sparsec_context_create_in(s->model, 1, memory, size, &context, &error)
                  : sparsec_context_create(s->model, 1, &context, &error))
        complain("context", error.message);
    return context;
}

// The `index`-th file that follows `option` in pairs of them; NULL if there are fewer.
static const char *file_of(char *const *pairs, int count, const char *option, uint32_t index) {
    for (int i = 0; i + 1 < count; i += 2)
        if (!strcmp(pairs[i], option) && !index--) return pairs[i + 1];
    return 0;
}

static uint32_t files_of(char *const *pairs, int count, const char *option) {
    uint32_t files = 0;
    while (file_of(pairs, count, option, files)) files++;
    return files;
}

// One inference: reads a file for each input, and writes one for each output that has one, raw data all.
static int run_files(const subject *s, char *const *pairs, int count) {
    sparsec_error error;
    uint32_t wanted = sparsec_input_count(s->model), given = sparsec_output_count(s->model);
    uint32_t inputs = files_of(pairs, count, "--input"), outputs = files_of(pairs, count, "--output");
    if (inputs != wanted || outputs > given) {
        say(STDERR_FILENO, "the model takes %u inputs and gives %u outputs, found %u and %u files\n", wanted, given,
            inputs, outputs);
        return 1;
    }
    sparsec_context *context = new_context(s);
    if (!context) return 1;
    for (uint32_t i = 0; i < wanted; i++) {
        const char *why, *path = file_of(pairs, count, "--input", i);
        span data = read_file(path, &why);
        if (!data.data) return complain(path, why);
        if (sparsec_set_input(context, i, data.data, data.size, &error)) return complain(path, error.message);
        drop_file(data);
    }
    if (sparsec_run(context, &error)) return complain("run", error.message);
    for (uint32_t i = 0; i < outputs; i++) {
        const char *path = file_of(pairs, count, "--output", i);
        if (write_file(path, sparsec_output_data(context, i), sparsec_output(s->model, i)->bytes)) return 1;
    }
    return 0;
}

int device_main(const char *usage, const subject *s, char **args, int count) {
    if (count == 1 && !strcmp(args[0], "--selftest")) return self_test(s);
    uint32_t files = files_of(args, count, "--input") + files_of(args, count, "--output");
    if (!count || 2 * files != (uint32_t)count) {
        say(STDERR_FILENO, "usage: %s --selftest\n       %s --input FILE ... --output FILE ...\n", usage, usage);
        return 2;
    }
    return run_files(s, args, count);
}
