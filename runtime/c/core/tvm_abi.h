// tvm_abi.h - the part of TVM's stable calling convention that kernels use
//
// A PrimFunc called NAME is exported as `tvm_kernel __tvm_ffi_NAME`.  Tensors are DLPack's DLTensor,
// passed by pointer in tagged 16-byte values.  Kernels assume that data are aligned to 64 bytes and
// do not check it.

#ifndef SPARSEC_TVM_ABI_H
#define SPARSEC_TVM_ABI_H

#include <stdint.h>

#define TVM_ALIGNMENT 64

typedef struct tvm_dtype {
    uint8_t code; // DLPack: 0 int, 1 uint, 2 float, 4 bfloat, 6 bool
    uint8_t bits;
    uint16_t lanes;
} tvm_dtype;

typedef struct tvm_tensor {
    void *data;
    struct {
        int32_t type; // 1: CPU
        int32_t id;
    } device;
    int32_t ndim;
    tvm_dtype dtype;
    const int64_t *shape;
    const int64_t *strides;
    uint64_t byte_offset;
} tvm_tensor;

typedef struct tvm_value {
    int32_t type; // 7: pointer to a tensor
    uint32_t padding;
    union {
        int64_t integer;
        double real;
        void *pointer;
    } as;
} tvm_value;

typedef int tvm_kernel(void *self, const tvm_value *args, int32_t count, tvm_value *result);

typedef struct tvm_parallel_env {
    void *sync;
    int32_t tasks;
} tvm_parallel_env;

typedef int tvm_task(int task, tvm_parallel_env *env, void *closure);

#endif
