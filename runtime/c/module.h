// module.h - what a compiled library exports to its loaders
//
// `sparsec_module_v1` is the only symbol of a model.<level>.so.  Loaders read `abi` first and touch
// nothing else unless it is 1 or SPARSEC_MODULE_ABI; a library of ABI 1 has no fields behind `label`.
// runtime/library.py mirrors this struct.

#ifndef SPARSEC_MODULE_H
#define SPARSEC_MODULE_H

#include "sparsec.h"

#define SPARSEC_MODULE_ABI 2

typedef struct sparsec_module {
    uint32_t abi;
    uint32_t input_count;
    uint32_t output_count;
    uint32_t step_count;
    uint64_t arena_size;     // bytes of a context's tensors
    uint64_t weights_size;   // bytes that `create` expects at `weights`
    uint64_t workspace_size; // bytes of scratch per thread
    const char *level;
    const sparsec_tensor *inputs;
    const sparsec_tensor *outputs;

    // `weights` must be aligned to 64 bytes and outlive the context.
    sparsec_status (*create)(const void *weights, int threads, sparsec_context **context, sparsec_error *error);
    void (*destroy)(sparsec_context *context);
    int (*threads)(const sparsec_context *context);
    sparsec_status (*set_input)(sparsec_context *, uint32_t, const void *, size_t, sparsec_error *);
    sparsec_status (*bind_input)(sparsec_context *, uint32_t, const void *, size_t, sparsec_error *);
    sparsec_status (*bind_output)(sparsec_context *, uint32_t, void *, size_t, sparsec_error *);
    const void *(*output_data)(const sparsec_context *, uint32_t);
    // `inputs` and `outputs`, if not NULL, hold one pointer per port and replace what is bound, for
    // this and later runs; `seconds`, if not NULL, receives the time of each step.
    sparsec_status (*run)(sparsec_context *context, const void *const *inputs, void *const *outputs, double *seconds,
                          sparsec_error *error);
    const char *(*label)(uint32_t step);

    // ABI 2
    uint64_t (*context_size)(int threads); // 0: not an allowed number
    // As `create`, with memory from `allocator`, which is copied; NULL: the system's.
    sparsec_status (*create_in)(const void *weights, int threads, const sparsec_allocator *allocator,
                                sparsec_context **context, sparsec_error *error);
    sparsec_status (*snapshot)(sparsec_context *context, void *data, size_t bytes, sparsec_error *error);
    // `data` NULL: all states become zero.
    sparsec_status (*restore)(sparsec_context *context, const void *data, size_t bytes, sparsec_error *error);
    const void *(*state_data)(const sparsec_context *context, uint32_t index);
    uint32_t state_count;
    const sparsec_tensor *states; // named as the inputs that they were
} sparsec_module;

const sparsec_module *sparsec_module_v1(void);

// The head of every context, so that code outside the library finds the way back to it.
struct sparsec_context {
    const sparsec_module *module;
};

#endif
