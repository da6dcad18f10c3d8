// core.h - what the files of the core share; nothing here is seen outside a library

#ifndef SPARSEC_CORE_H
#define SPARSEC_CORE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "../error.h"
#include "plan.h"

// Section: threads

#define MAX_THREADS 1024 // of one context

struct pool;

// A thread at work for a context: the caller of run (index 0) or a thread of the pool.
typedef struct worker {
    struct context *context;
    char *scratch; // workspace of kernels, a stack
    uint64_t scratch_size;
    uint64_t used;
    bool in_task; // a parallel loop inside a parallel loop runs on the thread that meets it
} worker;

// Starts threads - 1 threads, which become workers[1 ..]; NULL if the system has no more threads.
struct pool *pool_create(worker *workers, int threads);
void pool_destroy(struct pool *pool);

// Calls task(k, ...) once for every k < tasks, on all threads; nonzero if any call failed.
int pool_launch(struct pool *pool, tvm_task *task, void *closure, int tasks);

// One task on one thread, its workspace given back at the end.
int worker_call(worker *w, tvm_task *task, void *closure, int index, int tasks);

// The number of CPUs that this process may use.
int usable_cpus(void);

// The default number of threads: SPARSEC_NUM_THREADS if set, else usable_cpus().  Nonzero if the
// variable is not a positive number.
int default_threads(int *threads);

// The worker that the calling thread is; NULL outside run.
worker *current_worker(void);
void set_current_worker(worker *w);

// Section: contexts

// A model's input or output within a context.
typedef struct port {
    void *caller; // bound memory, or NULL
    void *active; // what the kernels see: caller's memory or `own`
    void *own;    // aligned memory in the arena
    uint32_t first_use; // 1 + index in args, 0: none
} port;

typedef struct context {
    sparsec_context head;
    atomic_flag running;
    atomic_flag failed; // the first failure writes the message, on whatever thread
    char message[900];
    int thread_count;
    int owner; // process id: threads do not survive fork
    struct pool *pool;
    worker *workers;
    tvm_tensor *tensors; // one per argument of every step
    tvm_value *values;   // the arguments themselves
    uint32_t *next_use;  // next argument of the same port, 1 + index
    port *inputs;
    port *outputs;
    void *block; // the one allocation that holds everything, this struct included
    uint64_t block_size;
} context;

// Keeps the first message of a run: printf-style, one line.
void context_fail(context *c, const char *format, ...) __attribute__((format(printf, 2, 3)));


#endif
