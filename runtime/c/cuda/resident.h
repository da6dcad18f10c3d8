// resident.h - what all contexts of the model share on one GPU: its weights and its kernels

#ifndef SPARSEC_CUDA_RESIDENT_H
#define SPARSEC_CUDA_RESIDENT_H

#include "driver.h"
#include "plan.h"

typedef struct resident {
    struct resident *next;
    int device; // ordinal
    int users;  // contexts
    const void *source; // the weights in host memory
    cu_context context; // the device's primary one
    cu_module module;
    cu_address weights;
    cu_function functions[]; // one per launch
} resident;

// The model on a GPU, there already or brought there now; nonzero with the reason where that cannot be.
sparsec_status resident_take(const cuda_driver *cu, const void *weights, const void *kernels, int device,
                             resident **out, sparsec_error *error);
// Gives it back; the last user frees the GPU's memory.
void resident_give(const cuda_driver *cu, resident *r);

#endif
