// context.c - the memory of one inference, laid out once, and the loop over the plan's steps

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "core.h"
#include "floats.h"

#define plan (&sparsec_the_plan)
#define model (&sparsec_the_plan.module)
#define HUGE_PAGE (2u << 20)

void context_fail(context *c, const char *format, ...) {
    if (atomic_flag_test_and_set(&c->failed)) return;
    va_list args;
    va_start(args, format);
    vsnprintf(c->message, sizeof c->message, format, args);
    va_end(args);
    one_line(c->message);
}

// Section: layout

typedef struct layout {
    char *base; // NULL while only the size is asked for
    uint64_t used;
} layout;

static void *take(layout *l, uint64_t bytes) {
    void *p = l->base ? l->base + l->used : 0;
    l->used += (bytes + TVM_ALIGNMENT - 1) & -(uint64_t)TVM_ALIGNMENT;
    return p;
}

// Everything that a context owns, in the order of addresses.  Pages that are never touched, such as
// the own memory of outputs that are always bound, cost nothing.
static uint64_t lay_out(context *c, void *base, int threads, char **arena) {
    layout l = {base, 0};
    take(&l, sizeof *c);
    c->workers = take(&l, (uint64_t)threads * sizeof *c->workers);
    c->inputs = take(&l, model->input_count * sizeof *c->inputs);
    c->outputs = take(&l, model->output_count * sizeof *c->outputs);
    c->tensors = take(&l, plan->arg_count * sizeof *c->tensors);
    c->values = take(&l, plan->arg_count * sizeof *c->values);
    c->next_use = take(&l, plan->arg_count * sizeof *c->next_use);
    *arena = take(&l, model->arena_size);
    for (uint32_t i = 0; i < model->input_count; i++) {
        void *own = take(&l, model->inputs[i].bytes);
        if (base) c->inputs[i].own = own;
    }
    for (uint32_t i = 0; i < model->output_count; i++) {
        void *own = take(&l, model->outputs[i].bytes);
        if (base) c->outputs[i].own = own;
    }
    for (int i = 0; i < threads; i++) {
        uint64_t before = l.used;
        void *scratch = take(&l, model->workspace_size);
        if (base) c->workers[i] = (worker){c, scratch, l.used - before, 0, false};
    }
    return l.used;
}

static void aim(context *c, port *p, void *data) {
    p->active = data;
    for (uint32_t use = p->first_use; use; use = c->next_use[use - 1]) c->tensors[use - 1].data = data;
}

static void fill_arguments(context *c, const char *weights, char *arena) {
    for (uint32_t i = 0; i < plan->arg_count; i++) {
        const sparsec_arg *a = plan->args + i;
        tvm_tensor *t = c->tensors + i;
        *t = (tvm_tensor){.device = {1, 0}, .ndim = a->ndim, .dtype = a->dtype};
        t->shape = plan->dims + a->dims;
        t->strides = t->shape + a->ndim;
        c->values[i] = (tvm_value){.type = 7, .as.pointer = t};
        port *p = a->space == SPARSEC_INPUT ? c->inputs + a->where : c->outputs + a->where;
        switch (a->space) {
        case SPARSEC_WEIGHT: t->data = (char *)weights + a->where; break;
        case SPARSEC_ARENA: t->data = arena + a->where; break;
        default:
            c->next_use[i] = p->first_use;
            p->first_use = i + 1;
        }
    }
    for (uint32_t i = 0; i < model->input_count; i++) aim(c, c->inputs + i, c->inputs[i].own);
    for (uint32_t i = 0; i < model->output_count; i++) aim(c, c->outputs + i, c->outputs[i].own);
}

// Section: life

sparsec_status core_create(const void *weights, int threads, sparsec_context **out, sparsec_error *error) {
    if (!threads && default_threads(&threads))
        return fail(error, SPARSEC_E_INPUT, "SPARSEC_NUM_THREADS must be a number from 1 to %d, found '%.40s'",
                    MAX_THREADS, getenv("SPARSEC_NUM_THREADS"));
    if (threads < 1 || threads > MAX_THREADS)
        return fail(error, SPARSEC_E_INPUT, "threads must be from 1 to %d, or 0 for the default, found %d", MAX_THREADS,
                    threads);
    if (model->weights_size && (!weights || (uintptr_t)weights % TVM_ALIGNMENT))
        return fail(error, SPARSEC_E_INPUT, "weights must be aligned to %d bytes", TVM_ALIGNMENT);
    context sizing;
    char *arena;
    uint64_t size = lay_out(&sizing, 0, threads, &arena);
    // Large blocks begin at the border of a huge page, so one more than needed is mapped.
    uint64_t slack = size >= HUGE_PAGE ? HUGE_PAGE : 0;
    char *map = mmap(0, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return fail(error, SPARSEC_E_RUN, "no memory for a context: %llu bytes are needed", (unsigned long long)size);
    context *c = (context *)map;
    if (slack) {
        c = (context *)(((uintptr_t)map + HUGE_PAGE - 1) & -(uintptr_t)HUGE_PAGE);
        madvise(c, size, MADV_HUGEPAGE); // fewer TLB misses where the kernel follows the advice
    }
    lay_out(c, c, threads, &arena);
    c->head.module = model;
    c->block = map;
    c->block_size = size + slack;
    c->thread_count = threads;
    c->owner = getpid();
    fill_arguments(c, weights, arena);
    if (threads > 1 && !(c->pool = pool_create(c->workers, threads))) {
        munmap(c->block, c->block_size);
        return fail(error, SPARSEC_E_RUN, "cannot start %d threads: the system's limit is reached", threads - 1);
    }
    *out = &c->head;
    return SPARSEC_OK;
}

void core_destroy(sparsec_context *context_) {
    context *c = (context *)context_;
    if (!c) return;
    if (c->owner == getpid()) pool_destroy(c->pool); // a forked child has the memory, not the threads
    munmap(c->block, c->block_size);
}

int core_threads(const sparsec_context *c) { return ((const context *)c)->thread_count; }

// Section: binding

static sparsec_status check_port(const sparsec_tensor *tensors, uint32_t count, const char *what, uint32_t index,
                                 size_t bytes, sparsec_error *error) {
    if (index >= count) return fail(error, SPARSEC_E_INPUT, "%s %u: the model has %u", what, index, count);
    if (bytes != tensors[index].bytes)
        return fail(error, SPARSEC_E_INPUT, "%s '%s' takes %llu bytes, found %llu", what, tensors[index].name,
                    (unsigned long long)tensors[index].bytes, (unsigned long long)bytes);
    return SPARSEC_OK;
}

sparsec_status core_bind_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes,
                               sparsec_error *error) {
    sparsec_status rc = check_port(model->inputs, model->input_count, "input", index, bytes, error);
    if (!rc && !data) return fail(error, SPARSEC_E_INPUT, "input '%s' must not be NULL", model->inputs[index].name);
    if (!rc) ((context *)c)->inputs[index].caller = (void *)data;
    return rc;
}

sparsec_status core_set_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes,
                              sparsec_error *error) {
    sparsec_status rc = core_bind_input(c, index, data, bytes, error);
    if (rc) return rc;
    port *p = ((context *)c)->inputs + index;
    memcpy(p->own, data, bytes);
    p->caller = p->own;
    return rc;
}

sparsec_status core_bind_output(sparsec_context *c, uint32_t index, void *data, size_t bytes, sparsec_error *error) {
    sparsec_status rc = check_port(model->outputs, model->output_count, "output", index, bytes, error);
    if (!rc) ((context *)c)->outputs[index].caller = data;
    return rc;
}

const void *core_output_data(const sparsec_context *context_, uint32_t index) {
    const context *c = (const context *)context_;
    if (index >= model->output_count) return 0;
    return c->outputs[index].caller ? c->outputs[index].caller : c->outputs[index].own;
}

// Section: run

static bool aligned(const void *p) { return (uintptr_t)p % TVM_ALIGNMENT == 0; }

static sparsec_status bring_inputs(context *c, sparsec_error *error) {
    for (uint32_t i = 0; i < model->input_count; i++) {
        port *p = c->inputs + i;
        if (!p->caller) return fail(error, SPARSEC_E_INPUT, "input '%s' was never given", model->inputs[i].name);
        void *data = aligned(p->caller) ? p->caller : p->own;
        if (data != p->caller) memcpy(data, p->caller, model->inputs[i].bytes);
        if (data != p->active) aim(c, p, data);
    }
    for (uint32_t i = 0; i < model->output_count; i++) {
        port *p = c->outputs + i;
        void *data = p->caller && aligned(p->caller) ? p->caller : p->own;
        if (data != p->active) aim(c, p, data);
    }
    return SPARSEC_OK;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
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

static sparsec_status run_locked(context *c, double *seconds, sparsec_error *error) {
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
        port *p = c->outputs + i;
        if (p->caller && p->caller != p->active) memcpy(p->caller, p->active, model->outputs[i].bytes);
    }
    return SPARSEC_OK;
}

sparsec_status core_run(sparsec_context *context_, const void *const *inputs, void *const *outputs, double *seconds,
                        sparsec_error *error) {
    context *c = (context *)context_;
    if (c->pool && c->owner != getpid())
        return fail(error, SPARSEC_E_RUN, "the context was made before fork and its threads stayed in the parent; "
                                          "create another one here");
    if (atomic_flag_test_and_set(&c->running))
        return fail(error, SPARSEC_E_RUN, "the context is at work in another thread; create one per thread");
    if (inputs)
        for (uint32_t i = 0; i < model->input_count; i++) c->inputs[i].caller = (void *)inputs[i];
    if (outputs)
        for (uint32_t i = 0; i < model->output_count; i++) c->outputs[i].caller = outputs[i];
    sparsec_status rc = run_locked(c, seconds, error);
    atomic_flag_clear(&c->running);
    return rc;
}

const char *core_label(uint32_t step) { return step < model->step_count ? plan->steps[step].label : 0; }

// Section: the one symbol that a library exports

__attribute__((visibility("default"))) const sparsec_module *sparsec_module_v1(void) { return model; }
