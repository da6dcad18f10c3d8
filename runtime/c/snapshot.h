// snapshot.h - how large a snapshot of a model's states is; shared by the cores for CPUs and for GPUs

#ifndef SPARSEC_SNAPSHOT_H
#define SPARSEC_SNAPSHOT_H

#include "error.h"
#include "module.h"

static inline sparsec_status check_snapshot(const sparsec_module *module, size_t bytes, sparsec_error *error) {
    uint64_t wanted = 0;
    for (uint32_t i = 0; i < module->state_count; i++) wanted += module->states[i].bytes;
    if (bytes == wanted) return SPARSEC_OK;
    return fail(error, SPARSEC_E_INPUT, "a snapshot of this model's states has %llu bytes, found %llu",
                (unsigned long long)wanted, (unsigned long long)bytes);
}

#endif
