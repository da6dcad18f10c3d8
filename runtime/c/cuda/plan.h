// plan.h - the tables that compiler/cuda/link.py writes for one model

#ifndef SPARSEC_CUDA_PLAN_H
#define SPARSEC_CUDA_PLAN_H

#include "../gpu.h"
#include "../module.h"

#define CUDA_ALIGNMENT 256 // of everything in device memory: what cuMemAlloc gives

typedef enum cuda_space {
    CUDA_INPUT,   // where: index of the input
    CUDA_OUTPUT,  // where: index of the output
    CUDA_PAST,    // where: index of the state, as the last run left it
    CUDA_PRESENT, // where: index of the state, as this run makes it
    CUDA_WEIGHT,  // where: byte offset in the weights
    CUDA_ARENA,   // where: byte offset in the arena
    CUDA_FAULT,   // the word in which kernels say what went wrong
} cuda_space;

typedef struct cuda_arg {
    uint64_t where;
    uint32_t space;
} cuda_arg;

typedef struct cuda_launch {
    const char *kernel;
    uint32_t grid[3], block[3];
    uint32_t shared; // dynamic shared memory in bytes
    uint32_t first;  // index in plan->args
    uint32_t step;   // that it belongs to; ascending
} cuda_launch;

typedef struct cuda_plan {
    sparsec_module module;
    const cuda_arg *args;
    const cuda_launch *launches;
    const char *const *labels;       // of the steps
    const char *const *faults;       // what the fault word says, from 1 on
    const uint16_t *architectures;   // 80 for sm_80, with cubins in the fat binary; ascending
    uint32_t arg_count, launch_count, fault_count, architecture_count;
    uint32_t ptx;     // 90 where there is PTX for compute_90, 0 where there is none
    uint32_t toolkit; // CUDA's version that made the kernels: 13000 for 13.0
} cuda_plan;

extern const cuda_plan cuda_the_plan;

// Section: the functions of a module, in the order of their fields

sparsec_status cuda_refuse(const void *weights, int threads, sparsec_context **out, sparsec_error *error);
void cuda_destroy(sparsec_context *c);
int cuda_threads(const sparsec_context *c);
sparsec_status cuda_set_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes, sparsec_error *error);
sparsec_status cuda_bind_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes,
                               sparsec_error *error);
sparsec_status cuda_bind_output(sparsec_context *c, uint32_t index, void *data, size_t bytes, sparsec_error *error);
const void *cuda_output_data(const sparsec_context *c, uint32_t index);
sparsec_status cuda_run(sparsec_context *c, const void *const *inputs, void *const *outputs, double *seconds,
                        sparsec_error *error);
const char *cuda_label(uint32_t step);
uint64_t cuda_context_size(int threads);
sparsec_status cuda_refuse_in(const void *weights, int threads, const sparsec_allocator *allocator,
                              sparsec_context **context, sparsec_error *error);
sparsec_status cuda_snapshot(sparsec_context *c, void *data, size_t bytes, sparsec_error *error);
sparsec_status cuda_restore(sparsec_context *c, const void *data, size_t bytes, sparsec_error *error);
const void *cuda_state_data(const sparsec_context *c, uint32_t index);

#define SPARSEC_CUDA                                                                                          \
    cuda_refuse, cuda_destroy, cuda_threads, cuda_set_input, cuda_bind_input, cuda_bind_output,               \
        cuda_output_data, cuda_run, cuda_label, cuda_context_size, cuda_refuse_in, cuda_snapshot,             \
        cuda_restore, cuda_state_data

#endif
