// plan.c - a model written by hand, so that sanitizers and gcov see every line that runs
//
//     present = past + x       in four parallel tasks, by way of scratch memory
//     y = present * w          w are the weights
//     sum = the sum of y       unless `order` asks for a failure
//
// x, past, present, w, y: float32[17]; order: int32[1]; sum: float32[].

#include <string.h>

#include "core/plan.h"

#define N 17

#ifndef ABI
#define ABI SPARSEC_MODULE_ABI
#define ARENA (3 << 20) // so much that it begins with a huge page; y is all that is in it
#else
#define ARENA (4 * N)
#endif

extern int (*__TVMBackendParallelLaunch)(tvm_task *, void *, int);
extern void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int);
extern int (*__TVMBackendFreeWorkspace)(int, int, void *);
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);

static const tvm_tensor *tensor(const tvm_value *args, int i) { return args[i].as.pointer; }

static int add_part(int task, tvm_parallel_env *env, void *closure) {
    const tvm_value *args = closure;
    const float *past = tensor(args, 0)->data, *x = tensor(args, 1)->data;
    float *present = tensor(args, 2)->data, *scratch = __TVMBackendAllocWorkspace(1, 0, N * sizeof *scratch, 2, 32);
    if (!scratch) return -1;
    for (int i = task; i < N; i += env->tasks) scratch[i] = past[i] + x[i];
    for (int i = task; i < N; i += env->tasks) present[i] = scratch[i];
    return __TVMBackendFreeWorkspace(1, 0, scratch);
}

static int add(void *self, const tvm_value *args, int32_t count, tvm_value *result) {
    (void)self, (void)count, (void)result;
    return __TVMBackendParallelLaunch(add_part, (void *)args, 4);
}

static int scale_all(int task, tvm_parallel_env *env, void *closure) {
    const tvm_value *args = closure;
    const float *present = tensor(args, 0)->data, *w = tensor(args, 1)->data;
    float *y = tensor(args, 2)->data;
    for (int i = task; i < N; i += env->tasks) y[i] = present[i] * w[i];
    return 0;
}

// A loop in a loop: the inner one runs on the thread that meets it.
static int scale_some(int task, tvm_parallel_env *env, void *closure) {
    (void)env;
    return task ? 0 : __TVMBackendParallelLaunch(scale_all, closure, 3);
}

static int scale(void *self, const tvm_value *args, int32_t count, tvm_value *result) {
    (void)self, (void)count, (void)result;
    return __TVMBackendParallelLaunch(scale_some, (void *)args, 0); // as many tasks as threads
}

static int fail_task(int task, tvm_parallel_env *env, void *closure) {
    (void)env, (void)closure;
    return task == 1 ? -1 : 0;
}

static int total(void *self, const tvm_value *args, int32_t count, tvm_value *result) {
    (void)self, (void)count, (void)result;
    const float *y = tensor(args, 0)->data;
    float *sum = tensor(args, 2)->data;
    const char *parts[] = {"an index", 0, " is out\nof range"};
    char lengthy[1000];
    const char *one[] = {lengthy};
    switch (*(const int32_t *)tensor(args, 1)->data) {
    case 1: TVMFFIErrorSetRaisedFromCStrParts("ValueError", parts, 3); return -1;
    case 2: return __TVMBackendAllocWorkspace(1, 0, 1 << 20, 2, 32) ? 0 : -1;
    case 3: return -1; // without a word
    case 4: return __TVMBackendParallelLaunch(fail_task, 0, 5);
    case 5: return __TVMBackendAllocWorkspace(1, 0, UINT64_MAX - 3, 2, 32) ? 0 : -1;
    case 6: // longer than there is room for
        memset(lengthy, 'x', sizeof lengthy - 1), lengthy[sizeof lengthy - 1] = 0;
        return TVMFFIErrorSetRaisedFromCStrParts("Error", one, 1), -1;
    }
    *sum = 0;
    for (int i = 0; i < N; i++) *sum += y[i];
    return 0;
}

#define F32 {2, 32, 1}
#define I32 {0, 32, 1}

static const int64_t dims[] = {N, 1, 1, 1};

static const sparsec_tensor inputs[] = {{"x", "float32", 1, dims, 4 * N}, {"order", "int32", 1, dims + 2, 4}};
static const sparsec_tensor outputs[] = {{"y", "float32", 1, dims, 4 * N}, {"sum", "float32", 0, dims, 4}};
static const sparsec_tensor states[] = {{"past", "float32", 1, dims, 4 * N}};

static const sparsec_arg args[] = {
    {0, 0, 1, SPARSEC_PAST, F32},    {0, 0, 1, SPARSEC_INPUT, F32},  {0, 0, 1, SPARSEC_PRESENT, F32},
    {0, 0, 1, SPARSEC_PRESENT, F32}, {0, 0, 1, SPARSEC_WEIGHT, F32}, {0, 0, 1, SPARSEC_ARENA, F32},
    {0, 0, 1, SPARSEC_ARENA, F32},   {1, 2, 1, SPARSEC_INPUT, I32},  {1, 0, 0, SPARSEC_OUTPUT, F32},
    {0, 0, 1, SPARSEC_ARENA, F32},   {0, 0, 1, SPARSEC_OUTPUT, F32},
};

static int copy(void *self, const tvm_value *a, int32_t count, tvm_value *result) {
    (void)self, (void)count, (void)result;
    memcpy(tensor(a, 1)->data, tensor(a, 0)->data, 4 * N);
    return 0;
}

static const sparsec_step steps[] = {
    {add, "add", 0, 3}, {scale, "scale", 3, 3}, {total, "total", 6, 3}, {copy, "copy", 9, 2}};

const sparsec_plan sparsec_the_plan = {
    {ABI, 2, 2, 4, ARENA, 4 * N, 128, "v2", inputs, outputs, SPARSEC_CORE, 1, states},
    dims, args, steps, sizeof args / sizeof *args,
};
