// model.h - an open model: what opening it (open.c) leaves for the calls that follow (calls.c)

#ifndef SPARSEC_MODEL_H
#define SPARSEC_MODEL_H

#include "../gpu.h"
#include "../module.h"
#include "lib.h"

struct sparsec_model {
    const sparsec_module *module;
    const void *weights;
    const sparsec_gpu *gpu; // NULL for a model that runs on CPUs
    const void *kernels;    // kernels.fatbin
    void *map; // the whole file; NULL for a model in the caller's memory
    size_t map_size;
    void *handle;
    int code;                 // the library's memory; open as long as it is loaded, see load_code
    sparsec_allocator memory; // where this struct is
    bool own_allocator;       // whether `memory` is the caller's, and contexts use it, too
};

#endif
