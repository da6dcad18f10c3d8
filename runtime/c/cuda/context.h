// context.h - one inference on a GPU: what its life (context.c) and its runs (run.c) share

#ifndef SPARSEC_CUDA_CONTEXT_H
#define SPARSEC_CUDA_CONTEXT_H

#include <stdatomic.h>
#include <stdbool.h>

#include "resident.h"

// A model's input or output within a context.
typedef struct port {
    void *caller;      // bound memory of the host or the device, or NULL
    cu_address device; // the caller's memory if it is the device's, else 0
    cu_address active; // what kernels see: the caller's device memory or `own`
    cu_address own;    // device memory of the context
    char *staging;     // pinned host memory of the context
} port;

typedef struct context {
    sparsec_context head;
    atomic_flag running;
    int owner; // process id: a GPU's context does not survive fork
    const cuda_driver *cu;
    resident *on;
    cu_stream stream;
    cu_address memory; // arena, fault word, states, inputs, outputs
    cu_address fault;
    char *pinned; // copies of inputs, outputs and the fault word
    uint32_t *fault_copy;
    cu_address *args; // the values of all arguments
    void **pointers;  // their addresses, as a launch wants them
    cu_address *states[2]; // each has two memories, which change places after a run
    unsigned turn;         // which of them is the past
    cu_exec graphs[2];     // of each turn; NULL until a run has been captured
    bool repeats;          // the last run went well and used the same device memory
    cu_event *events; // one before each step and one at the end, made by the first profile
    port *inputs, *outputs;
} context;

// Makes the GPU's context the calling thread's current one, and the one before again.
static inline cu_result context_enter(const context *c) { return c->cu->push(c->on->context); }

static inline void context_leave(const context *c) {
    cu_context none;
    c->cu->pop(&none);
}

static inline uint64_t padded(uint64_t bytes) { return (bytes + CUDA_ALIGNMENT - 1) & -(uint64_t)CUDA_ALIGNMENT; }

// Gives the launches the addresses that the ports and the states have now.
void context_aim(context *c);

// Whether the calling thread may use the context, which it then must give back with `context_stop`.
sparsec_status context_start(context *c, sparsec_error *error);
void context_stop(context *c);

#endif
