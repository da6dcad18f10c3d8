// backend.c - the functions that kernels call: workspace, parallel loops, error text

#include <string.h>

#include "core.h"

#ifdef SPARSEC_BARE
static worker *current; // a system without threads has no storage of theirs
#else
static _Thread_local worker *current;
#endif

worker *current_worker(void) { return current; }

void set_current_worker(worker *w) { current = w; }

int worker_call(worker *w, tvm_task *task, void *closure, int index, int tasks) {
    tvm_parallel_env env = {0, tasks};
    uint64_t mark = w->used;
    bool outer = w->in_task;
    w->in_task = true;
    int rc = task(index, &env, closure);
    w->in_task = outer;
    w->used = mark;
    return rc;
}

static int parallel_launch(tvm_task *task, void *closure, int tasks) {
    worker *w = current;
    struct pool *pool = w->in_task ? 0 : w->context->pool;
    if (tasks <= 0) tasks = pool ? w->context->thread_count : 1;
    if (pool && tasks > 1 && tasks <= 0xffff) return pool_launch(pool, task, closure, tasks);
    for (int i = 0; i < tasks; i++) {
        int rc = worker_call(w, task, closure, i, tasks);
        if (rc) return rc;
    }
    return 0;
}

static void *alloc_workspace(int device_type, int device, uint64_t bytes, int code, int bits) {
    (void)device_type, (void)device, (void)code, (void)bits;
    worker *w = current;
    uint64_t size = (bytes + TVM_ALIGNMENT - 1) & -(uint64_t)TVM_ALIGNMENT;
    if (size < bytes || size > w->scratch_size - w->used) {
        context_fail(w->context, "a kernel asked for %llu bytes of workspace with %llu of %llu planned bytes in use",
                     (unsigned long long)bytes, (unsigned long long)w->used, (unsigned long long)w->scratch_size);
        return 0;
    }
    void *p = w->scratch + w->used;
    w->used += size;
    return p;
}

// Kernels free in the reverse order of their allocations.
static int free_workspace(int device_type, int device, void *p) {
    (void)device_type, (void)device;
    current->used = (uint64_t)((char *)p - current->scratch);
    return 0;
}

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count);

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    char text[800];
    size_t used = 0;
    for (int32_t i = 0; i < count; i++) {
        size_t n = parts[i] ? strlen(parts[i]) : 0;
        if (n > sizeof text - 1 - used) n = sizeof text - 1 - used;
        if (n) memcpy(text + used, parts[i], n);
        used += n;
    }
    text[used] = 0;
    context_fail(current->context, "%s: %s", kind, text);
}

// Kernels find us through these variables, which every kernel object declares weakly.
int (*__TVMBackendParallelLaunch)(tvm_task *, void *, int) = parallel_launch;
void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = alloc_workspace;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = free_workspace;
