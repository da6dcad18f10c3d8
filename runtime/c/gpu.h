// gpu.h - what a compiled library for GPUs exports beside module.h
//
// Its module's `create` refuses, because it is not given the kernels; `create` here makes contexts, which all
// other functions of the module take.  runtime/library.py mirrors this struct.

#ifndef SPARSEC_GPU_H
#define SPARSEC_GPU_H

#include "sparsec.h"

#define SPARSEC_GPU_ABI 1

typedef struct sparsec_gpu {
    uint32_t abi;
    // A context on GPU number `device`.  `kernels` is the content of kernels.fatbin; it and `weights` must stay
    // until the model's last context is gone.  Contexts of one model share what they need on each GPU.
    sparsec_status (*create)(const void *weights, const void *kernels, int device, sparsec_context **context,
                             sparsec_error *error);
    // The CUstream that the context runs on: who writes device memory that the context reads must be done before.
    void *(*stream)(const sparsec_context *context);
} sparsec_gpu;

const sparsec_gpu *sparsec_gpu_v1(void);

#endif
