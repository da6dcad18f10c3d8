// context.c - the memory of one inference, laid out once; the caller's buffers that take its place

#include <string.h>

#include "core.h"

void context_fail(context *c, const char *format, ...) {
    if (atomic_flag_test_and_set(&c->failed)) return;
    va_list args;
    va_start(args, format);
    vsnprintf(c->message, sizeof c->message, format, args);
    va_end(args);
    one_line(c->message);
}

side side_of(sparsec_space space) {
    switch (space) {
    case SPARSEC_INPUT: return (side){model->inputs, model->input_count};
    case SPARSEC_OUTPUT: return (side){model->outputs, model->output_count};
    default: return (side){model->states, model->state_count};
    }
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
    c->pool = take(&l, pool_size(threads));
    c->workers = take(&l, (uint64_t)threads * sizeof *c->workers);
    for (int space = 0; space < SPARSEC_PORT_SPACES; space++)
        c->ports[space] = take(&l, side_of(space).count * sizeof *c->ports[space]);
    c->tensors = take(&l, plan->arg_count * sizeof *c->tensors);
    c->values = take(&l, plan->arg_count * sizeof *c->values);
    c->next_use = take(&l, plan->arg_count * sizeof *c->next_use);
    *arena = take(&l, model->arena_size);
    for (int space = 0; space < SPARSEC_PORT_SPACES; space++) {
        side s = side_of(space);
        for (uint32_t i = 0; i < s.count; i++) {
            void *own = take(&l, s.tensors[i].bytes);
            if (base) c->ports[space][i] = (port){.own = own};
        }
    }
    for (int i = 0; i < threads; i++) {
        uint64_t before = l.used;
        void *scratch = take(&l, model->workspace_size);
        if (base) c->workers[i] = (worker){c, scratch, l.used - before, 0, false};
    }
    return l.used;
}

void aim(context *c, port *p, void *data) {
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
        c->next_use[i] = 0;
        switch (a->space) {
        case SPARSEC_WEIGHT: t->data = (char *)weights + a->where; break;
        case SPARSEC_ARENA: t->data = arena + a->where; break;
        default: {
            port *p = c->ports[a->space] + a->where;
            c->next_use[i] = p->first_use;
            p->first_use = i + 1;
        }
        }
    }
    for (int space = 0; space < SPARSEC_PORT_SPACES; space++)
        for (uint32_t i = 0; i < side_of(space).count; i++) aim(c, c->ports[space] + i, c->ports[space][i].own);
}

// Section: life

uint64_t core_context_size(int threads) {
    if ((!threads && default_threads(&threads, 0)) || threads < 1 || threads > MAX_THREADS) return 0;
    context sizing;
    char *arena;
    return lay_out(&sizing, 0, threads, &arena);
}

sparsec_status core_create_in(const void *weights, int threads, const sparsec_allocator *allocator,
                              sparsec_context **out, sparsec_error *error) {
    sparsec_status rc = threads ? SPARSEC_OK : default_threads(&threads, error);
    if (rc) return rc;
    if (threads < 1 || threads > MAX_THREADS)
        return fail(error, SPARSEC_E_INPUT, "threads must be from 1 to %d, or 0 for the default, found %d", MAX_THREADS,
                    threads);
    if (model->weights_size && (!weights || (uintptr_t)weights % TVM_ALIGNMENT))
        return fail(error, SPARSEC_E_INPUT, "weights must be aligned to %d bytes", TVM_ALIGNMENT);
    if (!allocator) allocator = &system_memory;
    uint64_t size = core_context_size(threads);
    context *c = size == (size_t)size ? allocator->allocate(allocator->user, (size_t)size, TVM_ALIGNMENT) : 0;
    if (!c)
        return fail(error, SPARSEC_E_RUN, "no memory for a context: %llu bytes are needed", (unsigned long long)size);
    char *arena;
    *c = (context){.head = {model}, .running = ATOMIC_FLAG_INIT, .failed = ATOMIC_FLAG_INIT};
    lay_out(c, c, threads, &arena);
    c->allocator = *allocator;
    c->size = size;
    c->thread_count = threads;
    c->owner = process_id();
    fill_arguments(c, weights, arena);
    core_restore(&c->head, 0, 0, 0);
    set_current_worker(current_worker()); // so that libc makes the slot now and not in the first run
    if (threads == 1) c->pool = 0;
    if (c->pool && pool_start(c->pool, c->workers, threads)) {
        c->allocator.release(c->allocator.user, c, size);
        return fail(error, SPARSEC_E_RUN, "cannot start %d threads: the system's limit is reached", threads - 1);
    }
    *out = &c->head;
    return SPARSEC_OK;
}

sparsec_status core_create(const void *weights, int threads, sparsec_context **out, sparsec_error *error) {
    return core_create_in(weights, threads, 0, out, error);
}

void core_destroy(sparsec_context *context_) {
    context *c = (context *)context_;
    if (!c) return;
    if (c->owner == process_id()) pool_stop(c->pool); // a forked child has the memory, not the threads
    sparsec_allocator allocator = c->allocator;
    allocator.release(allocator.user, c, c->size);
}

int core_threads(const sparsec_context *c) { return ((const context *)c)->thread_count; }

// Section: binding

static sparsec_status check_port(sparsec_space space, const char *what, uint32_t index, size_t bytes,
                                 sparsec_error *error) {
    side s = side_of(space);
    if (index >= s.count) return fail(error, SPARSEC_E_INPUT, "%s %u: the model has %u", what, index, s.count);
    if (bytes != s.tensors[index].bytes)
        return fail(error, SPARSEC_E_INPUT, "%s '%s' takes %llu bytes, found %llu", what, s.tensors[index].name,
                    (unsigned long long)s.tensors[index].bytes, (unsigned long long)bytes);
    return SPARSEC_OK;
}

sparsec_status core_bind_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes,
                               sparsec_error *error) {
    sparsec_status rc = check_port(SPARSEC_INPUT, "input", index, bytes, error);
    if (!rc && !data) return fail(error, SPARSEC_E_INPUT, "input '%s' must not be NULL", model->inputs[index].name);
    if (!rc) ((context *)c)->ports[SPARSEC_INPUT][index].caller = (void *)data;
    return rc;
}

sparsec_status core_set_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes,
                              sparsec_error *error) {
    sparsec_status rc = core_bind_input(c, index, data, bytes, error);
    if (rc) return rc;
    port *p = ((context *)c)->ports[SPARSEC_INPUT] + index;
    memcpy(p->own, data, bytes);
    p->caller = p->own;
    return rc;
}

sparsec_status core_bind_output(sparsec_context *c, uint32_t index, void *data, size_t bytes, sparsec_error *error) {
    sparsec_status rc = check_port(SPARSEC_OUTPUT, "output", index, bytes, error);
    if (!rc) ((context *)c)->ports[SPARSEC_OUTPUT][index].caller = data;
    return rc;
}

const void *core_output_data(const sparsec_context *c, uint32_t index) {
    if (index >= model->output_count) return 0;
    const port *p = ((const context *)c)->ports[SPARSEC_OUTPUT] + index;
    return p->caller ? p->caller : p->own;
}
