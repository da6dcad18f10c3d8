// state.c - what a model keeps from run to run: copied out, put back, set to zero

#include <string.h>

#include "../snapshot.h"
#include "core.h"

sparsec_status core_snapshot(sparsec_context *context_, void *data, size_t bytes, sparsec_error *error) {
    context *c = (context *)context_;
    sparsec_status rc = check_snapshot(model, bytes, error);
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
    sparsec_status rc = data ? check_snapshot(model, bytes, error) : SPARSEC_OK;
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
