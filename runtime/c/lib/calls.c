// calls.c - the functions of sparsec.h that a model's library answers
//
// A library of ABI 1 has no states, and its contexts take their memory from the system.

#include "model.h"

const char *sparsec_version(void) { return SPARSEC_VERSION; }

// Section: models

uint32_t sparsec_input_count(const sparsec_model *m) { return m->module->input_count; }
uint32_t sparsec_output_count(const sparsec_model *m) { return m->module->output_count; }
uint32_t sparsec_state_count(const sparsec_model *m) { return m->module->abi < 2 ? 0 : m->module->state_count; }
uint32_t sparsec_step_count(const sparsec_model *m) { return m->module->step_count; }
const char *sparsec_step_label(const sparsec_model *m, uint32_t step) { return m->module->label(step); }
const char *sparsec_level(const sparsec_model *m) { return m->module->level; }

const sparsec_tensor *sparsec_input(const sparsec_model *m, uint32_t index) {
    return index < m->module->input_count ? m->module->inputs + index : 0;
}

const sparsec_tensor *sparsec_output(const sparsec_model *m, uint32_t index) {
    return index < m->module->output_count ? m->module->outputs + index : 0;
}

const sparsec_tensor *sparsec_state(const sparsec_model *m, uint32_t index) {
    return index < sparsec_state_count(m) ? m->module->states + index : 0;
}

uint64_t sparsec_snapshot_size(const sparsec_model *m) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < sparsec_state_count(m); i++) bytes += m->module->states[i].bytes;
    return bytes;
}

// Section: contexts

sparsec_status sparsec_context_create(sparsec_model *m, int threads, sparsec_context **context, sparsec_error *error) {
    if (m->gpu) return m->gpu->create(m->weights, m->kernels, 0, context, error);
    if (m->module->abi < 2) return m->module->create(m->weights, threads, context, error);
    return m->module->create_in(m->weights, threads, m->own_allocator ? &m->memory : 0, context, error);
}

sparsec_status sparsec_context_create_on(sparsec_model *m, int device, sparsec_context **context,
                                         sparsec_error *error) {
    if (m->gpu) return m->gpu->create(m->weights, m->kernels, device, context, error);
    return fail(error, SPARSEC_E_INPUT, "the model runs on CPUs; compile it for cuda");
}

uint64_t sparsec_context_size(const sparsec_model *m, int threads) {
    return m->module->abi < 2 ? 0 : m->module->context_size(threads);
}

// The caller's memory as an allocator that gives it once.
typedef struct block {
    void *data;
    size_t bytes;
} block;

static void *take_block(void *user, size_t bytes, size_t alignment) {
    const block *b = user;
    return b->bytes >= bytes && (uintptr_t)b->data % alignment == 0 ? b->data : 0;
}

static void leave_block(void *user, void *memory, size_t bytes) { (void)user, (void)memory, (void)bytes; }

sparsec_status sparsec_context_create_in(sparsec_model *m, int threads, void *memory, size_t bytes,
                                         sparsec_context **context, sparsec_error *error) {
    if (m->gpu)
        return fail(error, SPARSEC_E_INPUT, "the contexts of a model for GPUs are in the GPU's memory, not the caller's");
    if (m->module->abi < 2)
        return fail(error, SPARSEC_E_INPUT, "the artifact's contexts cannot be in the caller's memory; compile it again");
    if (!memory || (uintptr_t)memory % 64)
        return fail(error, SPARSEC_E_INPUT, "a context's memory must be aligned to 64 bytes");
    block whole = {memory, bytes};
    return m->module->create_in(m->weights, threads, &(sparsec_allocator){take_block, leave_block, &whole}, context,
                                error);
}

void sparsec_context_free(sparsec_context *c) {
    if (c) c->module->destroy(c);
}

int sparsec_threads(const sparsec_context *c) { return c->module->threads(c); }

sparsec_status sparsec_set_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes,
                                 sparsec_error *error) {
    return c->module->set_input(c, index, data, bytes, error);
}

sparsec_status sparsec_bind_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes,
                                  sparsec_error *error) {
    return c->module->bind_input(c, index, data, bytes, error);
}

sparsec_status sparsec_bind_output(sparsec_context *c, uint32_t index, void *data, size_t bytes,
                                   sparsec_error *error) {
    return c->module->bind_output(c, index, data, bytes, error);
}

const void *sparsec_output_data(const sparsec_context *c, uint32_t index) { return c->module->output_data(c, index); }

sparsec_status sparsec_run(sparsec_context *c, sparsec_error *error) { return c->module->run(c, 0, 0, 0, error); }

sparsec_status sparsec_profile(sparsec_context *c, double *seconds, sparsec_error *error) {
    return c->module->run(c, 0, 0, seconds, error);
}

// Section: state

static sparsec_status no_state(size_t bytes, sparsec_error *error) {
    if (!bytes) return SPARSEC_OK;
    return fail(error, SPARSEC_E_INPUT, "a snapshot of this model's states has 0 bytes, found %llu",
                (unsigned long long)bytes);
}

sparsec_status sparsec_snapshot(sparsec_context *c, void *data, size_t bytes, sparsec_error *error) {
    return c->module->abi < 2 ? no_state(bytes, error) : c->module->snapshot(c, data, bytes, error);
}

sparsec_status sparsec_restore(sparsec_context *c, const void *data, size_t bytes, sparsec_error *error) {
    if (c->module->abi < 2) return no_state(bytes, error);
    if (!data && bytes) return fail(error, SPARSEC_E_INPUT, "a snapshot must not be NULL");
    return c->module->restore(c, data ? data : "", bytes, error); // the module takes NULL for a reset
}

sparsec_status sparsec_reset(sparsec_context *c, sparsec_error *error) {
    return c->module->abi < 2 ? SPARSEC_OK : c->module->restore(c, 0, 0, error);
}

const void *sparsec_state_data(const sparsec_context *c, uint32_t index) {
    return c->module->abi < 2 ? 0 : c->module->state_data(c, index);
}
