// state.c - what a model on a GPU keeps from run to run: copied out, put back, set to zero

#include "../snapshot.h"
#include "context.h"

#define model (&cuda_the_plan.module)

// One copy for each state, between its memory and the place in `data` that follows the states before it.
static cu_result copy_all(context *c, char *out, const char *in) {
    cu_result rc = 0;
    uint64_t at = 0;
    for (uint32_t i = 0; !rc && i < model->state_count; at += model->states[i++].bytes) {
        cu_address state = c->states[c->turn][i];
        uint64_t bytes = model->states[i].bytes;
        if (!bytes) continue;
        if (out)
            rc = c->cu->to_host(out + at, state, bytes, c->stream);
        else if (in)
            rc = c->cu->to_device(state, in + at, bytes, c->stream);
        else
            rc = c->cu->fill(state, 0, padded(bytes) / sizeof(uint32_t), c->stream);
    }
    return rc ? rc : c->cu->synchronize(c->stream);
}

static sparsec_status move(sparsec_context *context_, char *out, const char *in, sparsec_error *error) {
    context *c = (context *)context_;
    sparsec_status status = context_start(c, error);
    if (status) return status;
    cu_result rc = copy_all(c, out, in);
    context_stop(c);
    return rc ? fail(error, SPARSEC_E_RUN, "GPU %d failed: %s; load the model again", c->on->device, cuda_name(rc))
              : SPARSEC_OK;
}

sparsec_status cuda_snapshot(sparsec_context *c, void *data, size_t bytes, sparsec_error *error) {
    sparsec_status rc = check_snapshot(model, bytes, error);
    return rc || !bytes ? rc : move(c, data, 0, error);
}

sparsec_status cuda_restore(sparsec_context *c, const void *data, size_t bytes, sparsec_error *error) {
    sparsec_status rc = data ? check_snapshot(model, bytes, error) : SPARSEC_OK;
    return rc ? rc : move(c, 0, data, error);
}

const void *cuda_state_data(const sparsec_context *context_, uint32_t index) {
    const context *c = (const context *)context_;
    return index < model->state_count ? (const void *)(uintptr_t)c->states[c->turn][index] : 0;
}
