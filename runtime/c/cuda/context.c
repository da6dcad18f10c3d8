// context.c - the memory of one inference on a GPU, laid out once; the caller's buffers that take its place

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "context.h"

#define plan (&cuda_the_plan)
#define model (&cuda_the_plan.module)
#define WORD 64 // bytes of the fault word and of its copy, alignment included

// Section: layout

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
    case CUDA_PAST: return c->states[c->turn][a->where];
    case CUDA_PRESENT: return c->states[!c->turn][a->where];
    case CUDA_WEIGHT: return c->on->weights + a->where;
    case CUDA_ARENA: return c->memory + a->where;
    default: return c->fault;
    }
}

void context_aim(context *c) {
    for (uint32_t i = 0; i < plan->arg_count; i++) {
        c->args[i] = address_of(c, plan->args + i);
        c->pointers[i] = c->args + i;
    }
}

static sparsec_status allocate(context *c, sparsec_error *error) {
    uint64_t ports = ports_size(model->inputs, model->input_count) + ports_size(model->outputs, model->output_count);
    uint64_t states = 2 * ports_size(model->states, model->state_count);
    uint64_t size = padded(model->arena_size) + padded(WORD) + states + ports;
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
    if (states && (rc = c->cu->fill(at, 0, states / sizeof(uint32_t), c->stream)))
        return fail(error, SPARSEC_E_RUN, "GPU %d failed: %s", c->on->device, cuda_name(rc));
    for (int turn = 0; turn < 2; turn++)
        for (uint32_t i = 0; i < model->state_count; at += padded(model->states[i++].bytes)) c->states[turn][i] = at;
    place_ports(c->inputs, model->inputs, model->input_count, &at, &host);
    place_ports(c->outputs, model->outputs, model->output_count, &at, &host);
    context_aim(c);
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
    for (int turn = 0; turn < 2; turn++) c->states[turn] = calloc(model->state_count + 1, sizeof *c->states[turn]);
    return c;
}

static void free_context(context *c) {
    free(c->inputs);
    free(c->outputs);
    free(c->args);
    free(c->pointers);
    free(c->events);
    for (int turn = 0; turn < 2; turn++) free(c->states[turn]);
    free(c);
}

void cuda_destroy(sparsec_context *context_) {
    context *c = (context *)context_;
    if (!c) return;
    if (c->owner == getpid() && c->on) {
        if (!context_enter(c)) {
            for (int turn = 0; turn < 2; turn++)
                if (c->graphs[turn]) c->cu->exec_destroy(c->graphs[turn]);
            for (uint32_t i = 0; i <= model->step_count; i++)
                if (c->events[i]) c->cu->event_destroy(c->events[i]);
            if (c->pinned) c->cu->free_host(c->pinned);
            if (c->memory) c->cu->free(c->memory);
            if (c->stream) c->cu->stream_destroy(c->stream);
            context_leave(c);
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
    if (!c || !c->inputs || !c->outputs || !c->args || !c->pointers || !c->events || !c->states[0] || !c->states[1]) {
        if (c) free_context(c);
        return fail(error, SPARSEC_E_RUN, "no memory for a context");
    }
    c->head.module = model;
    c->owner = getpid();
    c->cu = cu;
    sparsec_status rc = resident_take(cu, weights, kernels, device, &c->on, error);
    if (!rc) {
        if (context_enter(c))
            rc = fail(error, SPARSEC_E_RUN, "GPU %d cannot be used", device);
        else {
            rc = allocate(c, error);
            context_leave(c);
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

sparsec_status cuda_refuse_in(const void *weights, int threads, const sparsec_allocator *allocator,
                              sparsec_context **out, sparsec_error *error) {
    (void)allocator;
    return cuda_refuse(weights, threads, out, error);
}

uint64_t cuda_context_size(int threads) { return (void)threads, 0; } // a GPU's memory is the driver's to give

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

const char *cuda_label(uint32_t step) { return step < model->step_count ? plan->labels[step] : 0; }

// Section: the symbols that a library exports

__attribute__((visibility("default"))) const sparsec_module *sparsec_module_v1(void) { return model; }

__attribute__((visibility("default"))) const sparsec_gpu *sparsec_gpu_v1(void) {
    static const sparsec_gpu gpu = {SPARSEC_GPU_ABI, create, stream};
    return &gpu;
}
