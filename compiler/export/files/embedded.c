// embedded.c - run the model that is linked with the program, on a system without files, loader or malloc
//
//     cc embedded.c -I../include ../lib/libNAME.a -lm -o embedded
//
// Inputs are zeros here.  MEMORY must be as many bytes as sparsec_context_size says, which `selftest` prints.

#include <stdio.h>

#include "sparsec.h"

#ifndef MEMORY
#define MEMORY (4u << 20)
#endif

static _Alignas(64) unsigned char memory[MEMORY];

int main(void) {
    sparsec_error error;
    sparsec_context *context;
    sparsec_model *model = sparsec_linked_model();
    if (sparsec_context_create_in(model, 1, memory, sizeof memory, &context, &error)) return puts(error.message), 1;
    for (uint32_t i = 0; i < sparsec_input_count(model); i++) {
        static const _Alignas(64) unsigned char zeros[1u << 20];
        const sparsec_tensor *input = sparsec_input(model, i);
        if (input->bytes > sizeof zeros) return puts("the input is larger than this example's zeros"), 1;
        if (sparsec_bind_input(context, i, zeros, input->bytes, &error)) return puts(error.message), 1;
    }
    if (sparsec_run(context, &error)) return puts(error.message), 1;
    for (uint32_t i = 0; i < sparsec_output_count(model); i++) {
        const sparsec_tensor *output = sparsec_output(model, i);
        const unsigned char *data = sparsec_output_data(context, i);
        printf("%s:", output->name);
        for (uint64_t k = 0; k < output->bytes; k++) printf(" %02x", data[k]);
        printf("\n");
    }
    return 0;
}
