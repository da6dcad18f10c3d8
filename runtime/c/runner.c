// runner.c - one inference of the model that is linked with it: WEIGHTS INPUTS OUTPUTS
//
// The files hold the weights, all inputs and then all states one after the other, and outputs and states
// likewise.  It needs no
// loader, so an emulator runs it without the other system's libraries.

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/plan.h"

static int complain(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    return 1;
}

// `size` bytes of `file` in new memory, aligned as kernels expect it; NULL where there are not so many.
static void *bytes_of(FILE *file, uint64_t size) {
    void *data = aligned_alloc(TVM_ALIGNMENT, (size + TVM_ALIGNMENT) & -(uint64_t)TVM_ALIGNMENT);
    return data && fread(data, 1, size, file) == size ? data : 0;
}

int main(int count, char **args) {
    if (count != 4) return complain(args[0], "give three files: WEIGHTS INPUTS OUTPUTS");
    FILE *files[3];
    for (int i = 0; i < 3; i++)
        if (!(files[i] = fopen(args[i + 1], i < 2 ? "rb" : "wb"))) return complain(args[i + 1], strerror(errno));
    const sparsec_module *m = &sparsec_the_plan.module;
    sparsec_context *context;
    sparsec_error error;
    void *weights = bytes_of(files[0], m->weights_size);
    if (!weights) return complain(args[1], "it is too short or there is no memory");
    if (m->create(weights, 1, &context, &error)) return complain("create", error.message);
    for (uint32_t i = 0; i < m->input_count; i++) {
        void *data = bytes_of(files[1], m->inputs[i].bytes);
        if (!data) return complain(args[2], "it is too short or there is no memory");
        if (m->set_input(context, i, data, m->inputs[i].bytes, &error)) return complain("input", error.message);
        free(data);
    }
    uint64_t size = 0;
    for (uint32_t i = 0; i < m->state_count; i++) size += m->states[i].bytes;
    char *states = bytes_of(files[1], size);
    if (!states) return complain(args[2], "it is too short or there is no memory");
    if (m->restore(context, states, size, &error)) return complain("states", error.message);
    if (m->run(context, 0, 0, 0, &error)) return complain("run", error.message);
    for (uint32_t i = 0; i < m->output_count; i++)
        if (fwrite(m->output_data(context, i), 1, m->outputs[i].bytes, files[2]) != m->outputs[i].bytes)
            return complain(args[3], strerror(errno));
    if (m->snapshot(context, states, size, &error)) return complain("states", error.message);
    if (fwrite(states, 1, size, files[2]) != size) return complain(args[3], strerror(errno));
    m->destroy(context);
    free(states);
    free(weights);
    return fclose(files[2]) ? complain(args[3], strerror(errno)) : 0;
}
