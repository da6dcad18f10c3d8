// state.c - what a model keeps from run to run: copied out, put back, set to zero

#include <string.h>

#include "core.h"

static sparsec_status check_size(size_t bytes, sparsec_error *error) {
    uint64_t wanted = 0;
    for (uint32_t i = 0; i < model->state_count; i++) wanted += model->states[i].bytes;
    if (bytes == wanted) return SPARSEC_OK;
    return fail(error, SPARSEC_E_INPUT, "a snapshot of this model's states has %llu bytes, found %llu",
                (unsigned long long)wanted, (unsigned long long)bytes);
}

sparsec_status core_snapshot(sparsec_context *context_, void *data, size_t bytes, sparsec_error *error) {
    context *c = (context *)context_;
    sparsec_status rc = check_size(bytes, error);
    if (!rc) rc = context_enter(c, error);
    if (rc) return rc;
    char *at = data;
    for (uint32_t i = 0; i < model->state_count; at += model->states[i++].bytes)
        memcpy(at, c->ports[SPARSEC_PAST][i].active, model->states[i].bytes);
    context_leave(c);
    return SPARSEC_OK;
}

sparsec_status core_restore(sparsec_context *context_, const void *data, size_t bytes, sparsec_error *error) {
    context *c = (context *)context_;
    sparsec_status rc = data ? check_size(bytes, error) : SPARSEC_OK;
    if (!rc) rc = context_enter(c, error);
    if (rc) return rc;
    const char *at = data;
    for (uint32_t i = 0; i < model->state_count; i++) {
        void *state = c->ports[SPARSEC_PAST][i].active;
        if (!at) {
            memset(state, 0, model->states[i].bytes);
            continue;
        }
        memcpy(state, at, model->states[i].bytes);
        at += model->states[i].bytes;
    }
    context_leave(c);
    return SPARSEC_OK;
}

const void *core_state_data(const sparsec_context *c, uint32_t index) {
    return index < model->state_count ? ((const context *)c)->ports[SPARSEC_PAST][index].active : 0;
}
