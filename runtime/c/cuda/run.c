// run.c - one run of a context: the plan's launches, as a graph from the second run on
//
// The first run launches kernels one by one, and the driver loads them; when a second one uses the same memory it
// is captured as a CUDA graph, which later runs replay in one call.  Host memory goes through pinned buffers,
// device memory is used in place.

#include <string.h>
#include <unistd.h>

#include "context.h"

#define plan (&cuda_the_plan)
#define model (&cuda_the_plan.module)

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

static cu_result capture(context *c, cu_exec *made) {
    cu_graph graph = 0;
    cu_result rc = c->cu->capture_begin(c->stream, CU_CAPTURE_THREAD_LOCAL);
    if (rc) return rc;
    rc = enqueue(c, false);
    cu_result ended = c->cu->capture_end(c->stream, &graph);
    if (!rc) rc = ended;
    if (!rc) rc = c->cu->instantiate(made, graph, 0);
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
    for (int turn = 0; !c->repeats && turn < 2; turn++) {
        if (c->graphs[turn]) c->cu->exec_destroy(c->graphs[turn]);
        c->graphs[turn] = 0;
    }
    cu_exec *graph = c->graphs + c->turn;
    context_aim(c);
    if (seconds) return time_steps(c, seconds);
    cu_result rc = c->repeats && !*graph ? capture(c, graph) : 0;
    if (!rc) rc = *graph ? c->cu->graph_launch(*graph, c->stream) : enqueue(c, false);
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
    // What was the present is now the past.
    if (model->state_count) c->turn = !c->turn;
    return SPARSEC_OK;
}

sparsec_status context_start(context *c, sparsec_error *error) {
    if (c->owner != getpid())
        return fail(error, SPARSEC_E_RUN, "the context was made before fork, which a GPU's do not survive; "
                                          "load the model again here");
    if (atomic_flag_test_and_set(&c->running))
        return fail(error, SPARSEC_E_RUN, "the context is at work in another thread; create one per thread");
    if (!context_enter(c)) return SPARSEC_OK;
    atomic_flag_clear(&c->running);
    return fail(error, SPARSEC_E_RUN, "GPU %d cannot be used", c->on->device);
}

void context_stop(context *c) {
    context_leave(c);
    atomic_flag_clear(&c->running);
}

sparsec_status cuda_run(sparsec_context *context_, const void *const *inputs, void *const *outputs, double *seconds,
                        sparsec_error *error) {
    context *c = (context *)context_;
    sparsec_status rc = context_start(c, error);
    if (rc) return rc;
    for (uint32_t i = 0; inputs && i < model->input_count; i++) c->inputs[i].caller = (void *)inputs[i];
    for (uint32_t i = 0; outputs && i < model->output_count; i++) c->outputs[i].caller = outputs[i];
    rc = run_entered(c, seconds, error);
    context_stop(c);
    return rc;
}
