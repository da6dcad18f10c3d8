// context.c - one inference on a GPU: memory laid out once, the plan's launches as a graph
//
// The first run launches kernels one by one, and the driver loads them; when a second one uses the same memory it
// is captured as a CUDA graph, which later runs replay in one call.  Host memory goes through pinned buffers, device memory is used in place.

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "resident.h"

#define plan (&cuda_the_plan)
#define model (&cuda_the_plan.module)
#define WORD 64 // bytes of the fault word and of its copy, alignment included

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
    cu_address memory; // arena, fault word, inputs, outputs
    cu_address fault;
    char *pinned; // copies of inputs, outputs and the fault word
    uint32_t *fault_copy;
    cu_address *args; // the values of all arguments
    void **pointers;  // their addresses, as a launch wants them
    cu_exec graph;    // NULL until a run has been captured
    bool repeats;     // the last run went well and used the same device memory
    cu_event *events; // one before each step and one at the end, made by the first profile
    port *inputs, *outputs;
} context;

static cu_result enter(const context *c) { return c->cu->push(c->on->context); }

static void leave(const context *c) {
    cu_context none;
    c->cu->pop(&none);
}

// Section: layout

static uint64_t padded(uint64_t bytes) { return (bytes + CUDA_ALIGNMENT - 1) & -(uint64_t)CUDA_ALIGNMENT; }

static uint64_t ports_size(const sparsec_tensor *tensors, uint32_t count) {
    uint64_t size = 0;
    for (uint32_t i = 0; i < count; i++) size += padded(tensors[i].bytes);
    return size;
}

static void place_ports(port *ports, const sparsec_tensor *tensors, uint32_t count, cu_address *device, char **host) {
    for (uint32_t i = 0; i < count; i++) {
        ports[i].own = ports[i].active = *device;
        ports[i].staging = *host;
        *device += padded(tensors[i].bytes);
        *host += padded(tensors[i].bytes);
    }
}

static cu_address address_of(const context *c, const cuda_arg *a) {
    switch (a->space) {
    case CUDA_INPUT: return c->inputs[a->where].active;
    case CUDA_OUTPUT: return c->outputs[a->where].active;
    case CUDA_WEIGHT: return c->on->weights + a->where;
    case CUDA_ARENA: return c->memory + a->where;
    default: return c->fault;
    }
}

static void fill_arguments(context *c) {
    for (uint32_t i = 0; i < plan->arg_count; i++) {
        c->args[i] = address_of(c, plan->args + i);
        c->pointers[i] = c->args + i;
    }
}

static sparsec_status allocate(context *c, sparsec_error *error) {
    uint64_t ports = ports_size(model->inputs, model->input_count) + ports_size(model->outputs, model->output_count);
    uint64_t size = padded(model->arena_size) + padded(WORD) + ports;
    cu_result rc = c->cu->stream_create(&c->stream, CU_NON_BLOCKING);
    if (!rc) rc = c->cu->alloc(&c->memory, size);
    if (rc)
        return fail(error, SPARSEC_E_RUN, "GPU %d has too little memory left: %llu bytes are needed for a context (%s)",
                    c->on->device, (unsigned long long)size, cuda_name(rc));
    if ((rc = c->cu->alloc_host((void **)&c->pinned, padded(WORD) + ports)))
        return fail(error, SPARSEC_E_RUN, "no pinned host memory for a context: %llu bytes are needed (%s)",
                    (unsigned long long)(padded(WORD) + ports), cuda_name(rc));
    cu_address at = c->memory + padded(model->arena_size);
    char *host = c->pinned;
    c->fault = at;
    c->fault_copy = (uint32_t *)host;
    at += padded(WORD);
    host += padded(WORD);
    place_ports(c->inputs, model->inputs, model->input_count, &at, &host);
    place_ports(c->outputs, model->outputs, model->output_count, &at, &host);
    fill_arguments(c);
    return SPARSEC_OK;
}

// Section: life

static context *new_context(void) {
    context *c = calloc(1, sizeof *c);
    if (!c) return 0;
    c->inputs = calloc(model->input_count + 1, sizeof *c->inputs);
    c->outputs = calloc(model->output_count + 1, sizeof *c->outputs);
    c->args = calloc(plan->arg_count + 1, sizeof *c->args);
    c->pointers = calloc(plan->arg_count + 1, sizeof *c->pointers);
    c->events = calloc(model->step_count + 1, sizeof *c->events);
    return c;
}

static void free_context(context *c) {
    free(c->inputs);
    free(c->outputs);
    free(c->args);
    free(c->pointers);
    free(c->events);
    free(c);
}

void cuda_destroy(sparsec_context *context_) {
    context *c = (context *)context_;
    if (!c) return;
    if (c->owner == getpid() && c->on) {
        if (!enter(c)) {
            if (c->graph) c->cu->exec_destroy(c->graph);
            for (uint32_t i = 0; i <= model->step_count; i++)
                if (c->events[i]) c->cu->event_destroy(c->events[i]);
            if (c->pinned) c->cu->free_host(c->pinned);
            if (c->memory) c->cu->free(c->memory);
            if (c->stream) c->cu->stream_destroy(c->stream);
            leave(c);
        }
        resident_give(c->cu, c->on);
    }
    free_context(c);
}

static sparsec_status create(const void *weights, const void *kernels, int device, sparsec_context **out,
                             sparsec_error *error) {
    const cuda_driver *cu = cuda_open(error);
    if (!cu) return SPARSEC_E_TARGET;
    context *c = new_context();
    if (!c || !c->inputs || !c->outputs || !c->args || !c->pointers || !c->events) {
        if (c) free_context(c);
        return fail(error, SPARSEC_E_RUN, "no memory for a context");
    }
    c->head.module = model;
    c->owner = getpid();
    c->cu = cu;
    sparsec_status rc = resident_take(cu, weights, kernels, device, &c->on, error);
    if (!rc) {
        if (enter(c))
            rc = fail(error, SPARSEC_E_RUN, "GPU %d cannot be used", device);
        else {
            rc = allocate(c, error);
            leave(c);
        }
    }
    if (rc)
        cuda_destroy(&c->head);
    else
        *out = &c->head;
    return rc;
}

sparsec_status cuda_refuse(const void *weights, int threads, sparsec_context **out, sparsec_error *error) {
    (void)weights, (void)threads, (void)out;
    return fail(error, SPARSEC_E_TARGET, "the model runs on a GPU, and this runtime is older than such models");
}

int cuda_threads(const sparsec_context *c) { return c ? 1 : 0; } // the GPU's are its own matter

static void *stream(const sparsec_context *c) { return ((const context *)c)->stream; }

// Section: binding

static sparsec_status check_port(const sparsec_tensor *tensors, uint32_t count, const char *what, uint32_t index,
                                 size_t bytes, sparsec_error *error) {
    if (index >= count) return fail(error, SPARSEC_E_INPUT, "%s %u: the model has %u", what, index, count);
    if (bytes != tensors[index].bytes)
        return fail(error, SPARSEC_E_INPUT, "%s '%s' takes %llu bytes, found %llu", what, tensors[index].name,
                    (unsigned long long)tensors[index].bytes, (unsigned long long)bytes);
    return SPARSEC_OK;
}

sparsec_status cuda_bind_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes,
                               sparsec_error *error) {
    sparsec_status rc = check_port(model->inputs, model->input_count, "input", index, bytes, error);
    if (!rc && !data) return fail(error, SPARSEC_E_INPUT, "input '%s' must not be NULL", model->inputs[index].name);
    if (!rc) ((context *)c)->inputs[index].caller = (void *)data;
    return rc;
}

sparsec_status cuda_set_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes,
                              sparsec_error *error) {
    sparsec_status rc = cuda_bind_input(c, index, data, bytes, error);
    if (rc) return rc;
    port *p = ((context *)c)->inputs + index;
    memcpy(p->staging, data, bytes);
    p->caller = p->staging;
    return rc;
}

sparsec_status cuda_bind_output(sparsec_context *c, uint32_t index, void *data, size_t bytes, sparsec_error *error) {
    sparsec_status rc = check_port(model->outputs, model->output_count, "output", index, bytes, error);
    if (!rc) ((context *)c)->outputs[index].caller = data;
    return rc;
}

const void *cuda_output_data(const sparsec_context *context_, uint32_t index) {
    const context *c = (const context *)context_;
    if (index >= model->output_count) return 0;
    return c->outputs[index].caller ? c->outputs[index].caller : c->outputs[index].staging;
}

// Section: run

// Finds out where the caller's memory is, and what kernels use for it.
static sparsec_status locate(context *c, port *p, const sparsec_tensor *t, sparsec_error *error) {
    cu_address at = (cu_address)(uintptr_t)p->caller, device = 0;
    unsigned kind = 0;
    int ordinal = 0;
    // Memory that CUDA does not know is the host's.
    if (p->caller && p->caller != p->staging && !c->cu->pointer_attribute(&kind, CU_MEMORY_TYPE, at) &&
        kind == CU_MEMORY_DEVICE)
        device = at;
    if (device && !c->cu->pointer_attribute(&ordinal, CU_DEVICE_ORDINAL, at) && ordinal != c->on->device)
        return fail(error, SPARSEC_E_INPUT, "'%s' is in the memory of GPU %d, the context is on GPU %d", t->name, ordinal,
                    c->on->device);
    if (device != p->device) c->repeats = false;
    p->device = device;
    p->active = device && device % 16 == 0 ? device : p->own; // kernels read up to 16 bytes at once
    return SPARSEC_OK;
}

static sparsec_status bring_inputs(context *c, sparsec_error *error) {
    for (uint32_t i = 0; i < model->input_count; i++) {
        port *p = c->inputs + i;
        if (!p->caller) return fail(error, SPARSEC_E_INPUT, "input '%s' was never given", model->inputs[i].name);
        sparsec_status rc = locate(c, p, model->inputs + i, error);
        if (rc) return rc;
        if (!p->device && p->caller != p->staging) memcpy(p->staging, p->caller, model->inputs[i].bytes);
    }
    for (uint32_t i = 0; i < model->output_count; i++) {
        sparsec_status rc = locate(c, c->outputs + i, model->outputs + i, error);
        if (rc) return rc;
    }
    return SPARSEC_OK;
}

// Copies that go through the context's own memory: from the host, or from device memory that is not aligned.
static cu_result enqueue_inputs(context *c) {
    cu_result rc = c->cu->fill(c->fault, 0, 1, c->stream);
    for (uint32_t i = 0; !rc && i < model->input_count; i++) {
        port *p = c->inputs + i;
        uint64_t bytes = model->inputs[i].bytes;
        if (!bytes || p->active != p->own) continue;
        rc = p->device ? c->cu->between(p->own, p->device, bytes, c->stream)
                       : c->cu->to_device(p->own, p->staging, bytes, c->stream);
    }
    return rc;
}

static cu_result enqueue_outputs(context *c) {
    cu_result rc = c->cu->to_host(c->fault_copy, c->fault, sizeof *c->fault_copy, c->stream);
    for (uint32_t i = 0; !rc && i < model->output_count; i++) {
        port *p = c->outputs + i;
        uint64_t bytes = model->outputs[i].bytes;
        if (!bytes || p->active != p->own) continue;
        rc = p->device ? c->cu->between(p->device, p->own, bytes, c->stream)
                       : c->cu->to_host(p->staging, p->own, bytes, c->stream);
    }
    return rc;
}

// All launches; with an event before each step and at the end if `timed`.
static cu_result enqueue_kernels(context *c, bool timed) {
    cu_result rc = 0;
    uint32_t step = 0;
    for (uint32_t i = 0; !rc && i < plan->launch_count; i++) {
        const cuda_launch *l = plan->launches + i;
        for (; !rc && timed && step <= l->step; step++) rc = c->cu->event_record(c->events[step], c->stream);
        if (!rc)
            rc = c->cu->launch(c->on->functions[i], l->grid[0], l->grid[1], l->grid[2], l->block[0], l->block[1],
                               l->block[2], l->shared, c->stream, c->pointers + l->first, 0);
    }
    for (; !rc && timed && step <= model->step_count; step++) rc = c->cu->event_record(c->events[step], c->stream);
    return rc;
}

static cu_result enqueue(context *c, bool timed) {
    cu_result rc = enqueue_inputs(c);
    if (!rc) rc = enqueue_kernels(c, timed);
    return rc ? rc : enqueue_outputs(c);
}

static cu_result capture(context *c) {
    cu_graph graph = 0;
    cu_result rc = c->cu->capture_begin(c->stream, CU_CAPTURE_THREAD_LOCAL);
    if (rc) return rc;
    rc = enqueue(c, false);
    cu_result ended = c->cu->capture_end(c->stream, &graph);
    if (!rc) rc = ended;
    if (!rc) rc = c->cu->instantiate(&c->graph, graph, 0);
    if (graph) c->cu->graph_destroy(graph);
    return rc;
}

static cu_result time_steps(context *c, double *seconds) {
    cu_result rc = 0;
    for (uint32_t i = 0; !rc && i <= model->step_count; i++)
        if (!c->events[i]) rc = c->cu->event_create(c->events + i, 0);
    if (!rc) rc = enqueue(c, true);
    if (!rc) rc = c->cu->synchronize(c->stream);
    for (uint32_t i = 0; !rc && i < model->step_count; i++) {
        float milliseconds = 0;
        rc = c->cu->event_elapsed(&milliseconds, c->events[i], c->events[i + 1]);
        seconds[i] = milliseconds * 1e-3;
    }
    return rc;
}

static cu_result compute(context *c, double *seconds) {
    if (!c->repeats) {
        if (c->graph) c->cu->exec_destroy(c->graph);
        c->graph = 0;
        fill_arguments(c);
    }
    if (seconds) return time_steps(c, seconds);
    cu_result rc = c->repeats && !c->graph ? capture(c) : 0;
    if (!rc) rc = c->graph ? c->cu->graph_launch(c->graph, c->stream) : enqueue(c, false);
    return rc ? rc : c->cu->synchronize(c->stream);
}

static sparsec_status run_entered(context *c, double *seconds, sparsec_error *error) {
    sparsec_status status = bring_inputs(c, error);
    if (status) return status;
    cu_result rc = compute(c, seconds);
    c->repeats = !rc;
    if (rc)
        return fail(error, SPARSEC_E_RUN, "GPU %d failed: %s%s", c->on->device, cuda_name(rc),
                    rc == CU_OUT_OF_MEMORY ? "; free some of its memory" : "; load the model again");
    uint32_t fault = *c->fault_copy;
    if (fault && fault <= plan->fault_count) return fail(error, SPARSEC_E_RUN, "%s", plan->faults[fault - 1]);
    for (uint32_t i = 0; i < model->output_count; i++) {
        port *p = c->outputs + i;
        if (p->caller && !p->device) memcpy(p->caller, p->staging, model->outputs[i].bytes);
    }
    return SPARSEC_OK;
}

sparsec_status cuda_run(sparsec_context *context_, const void *const *inputs, void *const *outputs, double *seconds,
                        sparsec_error *error) {
    context *c = (context *)context_;
    if (c->owner != getpid())
        return fail(error, SPARSEC_E_RUN, "the context was made before fork, which a GPU's do not survive; "
                                          "load the model again here");
    if (atomic_flag_test_and_set(&c->running))
        return fail(error, SPARSEC_E_RUN, "the context is at work in another thread; create one per thread");
    if (inputs)
        for (uint32_t i = 0; i < model->input_count; i++) c->inputs[i].caller = (void *)inputs[i];
    if (outputs)
        for (uint32_t i = 0; i < model->output_count; i++) c->outputs[i].caller = outputs[i];
    sparsec_status rc;
    if (enter(c))
        rc = fail(error, SPARSEC_E_RUN, "GPU %d cannot be used", c->on->device);
    else {
        rc = run_entered(c, seconds, error);
        leave(c);
    }
    atomic_flag_clear(&c->running);
    return rc;
}

const char *cuda_label(uint32_t step) { return step < model->step_count ? plan->labels[step] : 0; }

// Section: the symbols that a library exports

__attribute__((visibility("default"))) const sparsec_module *sparsec_module_v1(void) { return model; }

__attribute__((visibility("default"))) const sparsec_gpu *sparsec_gpu_v1(void) {
    static const sparsec_gpu gpu = {SPARSEC_GPU_ABI, create, stream};
    return &gpu;
}
