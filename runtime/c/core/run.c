// run.c - one inference: the caller's buffers, the loop over the plan's steps, the states that it leaves

#include <string.h>

#include "core.h"
#include "floats.h"

static bool aligned(const void *p) { return (uintptr_t)p % TVM_ALIGNMENT == 0; }

// Kernels read from any address, but vectors that cross cache lines take twice the loads.  From this size on
// a copy takes longer than that; 16 bytes are what allocators give.
enum { LARGE = 1 << 20, ALLOCATED = 16 };

static bool read_in_place(const void *p, uint64_t bytes) {
    return aligned(p) || (bytes >= LARGE && (uintptr_t)p % ALLOCATED == 0);
}

static sparsec_status bring_inputs(context *c, sparsec_error *error) {
    for (uint32_t i = 0; i < model->input_count; i++) {
        port *p = c->ports[SPARSEC_INPUT] + i;
        if (!p->caller) return fail(error, SPARSEC_E_INPUT, "input '%s' was never given", model->inputs[i].name);
        void *data = read_in_place(p->caller, model->inputs[i].bytes) ? p->caller : p->own;
        if (data != p->caller) memcpy(data, p->caller, model->inputs[i].bytes);
        if (data != p->active) aim(c, p, data);
    }
    for (uint32_t i = 0; i < model->output_count; i++) {
        port *p = c->ports[SPARSEC_OUTPUT] + i;
        void *data = p->caller && aligned(p->caller) ? p->caller : p->own;
        if (data != p->active) aim(c, p, data);
    }
    return SPARSEC_OK;
}

// The index of the step that failed, or step_count.
static uint32_t run_steps(context *c, double *seconds) {
    double start = seconds ? now() : 0;
    for (uint32_t i = 0; i < model->step_count; i++) {
        const sparsec_step *s = plan->steps + i;
        tvm_value result = {0};
        if (s->kernel(0, c->values + s->first, (int32_t)s->count, &result)) return i;
        if (seconds) {
            double end = now();
            seconds[i] = end - start;
            start = end;
        }
    }
    return model->step_count;
}

static sparsec_status run_entered(context *c, double *seconds, sparsec_error *error) {
    sparsec_status rc = bring_inputs(c, error);
    if (rc) return rc;
    floats state;
    worker *outer = current_worker();
    atomic_flag_clear(&c->failed);
    c->workers[0].used = 0;
    set_current_worker(c->workers);
    floats_enter(&state);
    uint32_t last = run_steps(c, seconds);
    floats_leave(&state);
    set_current_worker(outer);
    if (last < model->step_count) {
        context_fail(c, "the kernel returned an error without a reason"); // unless there is a message
        return fail(error, SPARSEC_E_RUN, "step '%.100s' failed: %s", plan->steps[last].label, c->message);
    }
    for (uint32_t i = 0; i < model->output_count; i++) {
        port *p = c->ports[SPARSEC_OUTPUT] + i;
        if (p->caller && p->caller != p->active) memcpy(p->caller, p->active, model->outputs[i].bytes);
    }
    // What was the present is now the past; the memory of the old past takes the next present.
    for (uint32_t i = 0; i < model->state_count; i++) {
        port *past = c->ports[SPARSEC_PAST] + i, *present = c->ports[SPARSEC_PRESENT] + i;
        void *older = past->active;
        aim(c, past, present->active);
        aim(c, present, older);
    }
    return SPARSEC_OK;
}

sparsec_status context_enter(context *c, sparsec_error *error) {
    if (atomic_flag_test_and_set(&c->running))
        return fail(error, SPARSEC_E_RUN, "the context is at work in another thread; create one per thread");
    return SPARSEC_OK;
}

void context_leave(context *c) { atomic_flag_clear(&c->running); }

sparsec_status core_run(sparsec_context *context_, const void *const *inputs, void *const *outputs, double *seconds,
                        sparsec_error *error) {
    context *c = (context *)context_;
    if (c->pool && c->owner != process_id())
        return fail(error, SPARSEC_E_RUN, "the context was made before fork and its threads stayed in the parent; "
                                          "create another one here");
    sparsec_status rc = context_enter(c, error);
    if (rc) return rc;
    for (uint32_t i = 0; inputs && i < model->input_count; i++)
        c->ports[SPARSEC_INPUT][i].caller = (void *)inputs[i];
    for (uint32_t i = 0; outputs && i < model->output_count; i++) c->ports[SPARSEC_OUTPUT][i].caller = outputs[i];
    rc = run_entered(c, seconds, error);
    context_leave(c);
    return rc;
}

const char *core_label(uint32_t step) { return step < model->step_count ? plan->steps[step].label : 0; }

// Section: the one symbol that a library exports

__attribute__((visibility("default"))) const sparsec_module *sparsec_module_v1(void) { return model; }
