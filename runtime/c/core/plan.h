// plan.h - the tables that compiler/native.py writes for one model

#ifndef SPARSEC_PLAN_H
#define SPARSEC_PLAN_H

#include "../module.h"
#include "tvm_abi.h"

typedef enum sparsec_space {
    SPARSEC_INPUT,   // where: index of the input
    SPARSEC_OUTPUT,  // where: index of the output
    SPARSEC_PAST,    // where: index of the state, as the last run left it
    SPARSEC_PRESENT, // where: index of the state, as this run makes it
    SPARSEC_WEIGHT,  // where: byte offset in the weights
    SPARSEC_ARENA,   // where: byte offset in the arena
} sparsec_space;

#define SPARSEC_PORT_SPACES 4 // the first ones, whose tensors can be anywhere

typedef struct sparsec_arg {
    uint64_t where;
    uint32_t dims; // index in plan->dims of ndim extents, followed by ndim strides
    int16_t ndim;
    uint8_t space;
    tvm_dtype dtype;
} sparsec_arg;

typedef struct sparsec_step {
    tvm_kernel *kernel;
    const char *label;
    uint32_t first; // index in plan->args
    uint32_t count;
} sparsec_step;

typedef struct sparsec_plan {
    sparsec_module module;
    const int64_t *dims;
    const sparsec_arg *args;
    const sparsec_step *steps;
    uint32_t arg_count;
} sparsec_plan;

extern const sparsec_plan sparsec_the_plan;

// Section: the functions of a module, in the order of their fields

sparsec_status core_create(const void *weights, int threads, sparsec_context **out, sparsec_error *error);
void core_destroy(sparsec_context *c);
int core_threads(const sparsec_context *c);
sparsec_status core_set_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes, sparsec_error *error);
sparsec_status core_bind_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes,
                               sparsec_error *error);
sparsec_status core_bind_output(sparsec_context *c, uint32_t index, void *data, size_t bytes, sparsec_error *error);
const void *core_output_data(const sparsec_context *c, uint32_t index);
sparsec_status core_run(sparsec_context *c, const void *const *inputs, void *const *outputs, double *seconds,
                        sparsec_error *error);
const char *core_label(uint32_t step);
uint64_t core_context_size(int threads);
sparsec_status core_create_in(const void *weights, int threads, const sparsec_allocator *allocator,
                              sparsec_context **out, sparsec_error *error);
sparsec_status core_snapshot(sparsec_context *c, void *data, size_t bytes, sparsec_error *error);
sparsec_status core_restore(sparsec_context *c, const void *data, size_t bytes, sparsec_error *error);
const void *core_state_data(const sparsec_context *c, uint32_t index);

#define SPARSEC_CORE                                                                                          \
    core_create, core_destroy, core_threads, core_set_input, core_bind_input, core_bind_output,               \
        core_output_data, core_run, core_label, core_context_size, core_create_in, core_snapshot,             \
        core_restore, core_state_data

#endif
