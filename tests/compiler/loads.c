// loads.c - MODEL INPUT OUTPUT: says the CPU level that libsparsec took, runs the model of one input and output

#include <stdio.h>
#include <stdlib.h>

#include "sparsec.h"

int main(int count, char **args) {
    sparsec_error error;
    sparsec_model *model;
    sparsec_context *context;
    if (count != 4) return 2;
    if (sparsec_open(args[1], NULL, &model, &error) || sparsec_context_create(model, 1, &context, &error)) {
        puts(error.message);
        return 1;
    }
    puts(sparsec_level(model));
    size_t bytes = sparsec_input(model, 0)->bytes;
    void *data = malloc(bytes);
    FILE *input = fopen(args[2], "rb"), *output = fopen(args[3], "wb");
    if (!input || !output || fread(data, 1, bytes, input) != bytes) return 3;
    if (sparsec_set_input(context, 0, data, bytes, &error) || sparsec_run(context, &error)) return 4;
    fwrite(sparsec_output_data(context, 0), 1, sparsec_output(model, 0)->bytes, output);
    fclose(input);
    fclose(output);
    free(data);
    sparsec_context_free(context);
    sparsec_close(model);
    return 0;
}
