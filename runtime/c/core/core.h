// core.h - what the files of the core share; nothing here is seen outside a library

#ifndef SPARSEC_CORE_H
#define SPARSEC_CORE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "../error.h"
#include "plan.h"

// Section: threads

#ifdef SPARSEC_NO_THREADS
#define MAX_THREADS 1
#else
#define MAX_THREADS 1024 // of one context
#endif

struct pool;

// A thread at work for a context: the caller of run (index 0) or a thread of the pool.
typedef struct worker {
    struct context *context;
    char *scratch; // workspace of kernels, a stack
    uint64_t scratch_size;
    uint64_t used;
    bool in_task; // a parallel loop inside a parallel loop runs on the thread that meets it
} worker;

// The bytes of a pool for `threads` threads, and the start of threads - 1 of them in so many bytes, aligned
// to 64; they become workers[1 ..].  Nonzero, and nothing is left, if the system has no more threads.
uint64_t pool_size(int threads);
int pool_start(struct pool *pool, worker *workers, int threads);

// Ends the threads; NULL is allowed.
void pool_stop(struct pool *pool);

// Calls task(k, ...) once for every k < tasks, on all threads; nonzero if any call failed.
int pool_launch(struct pool *pool, tvm_task *task, void *closure, int tasks);

// One task on one thread, its workspace given back at the end.
int worker_call(worker *w, tvm_task *task, void *closure, int index, int tasks);

// The number of threads that 0 stands for: SPARSEC_NUM_THREADS if set, else usable_cpus().
// SPARSEC_E_INPUT if the variable is not an allowed number.
sparsec_status default_threads(int *threads, sparsec_error *error);

int process_id(void);
double now(void); // seconds

// The worker that the calling thread is; NULL outside run.
worker *current_worker(void);
void set_current_worker(worker *w);

// Section: contexts

#define HUGE_PAGE (2u << 20)

// Anonymous pages, huge ones where there are enough of them.
extern const sparsec_allocator system_memory;

// A model's input, output or state within a context.
typedef struct port {
    void *caller; // bound memory, or NULL
    void *active; // what the kernels see: caller's memory or `own`
    void *own;    // aligned memory in the context's block
    uint32_t first_use; // 1 + index in args, 0: none
} port;

typedef struct context {
    sparsec_context head;
    atomic_flag running;
    atomic_flag failed; // the first failure writes the message, on whatever thread
    char message[900];
    int thread_count;
    int owner; // process id: threads do not survive fork
    struct pool *pool; // NULL for one thread
    worker *workers;
    tvm_tensor *tensors; // one per argument of every step
    tvm_value *values;   // the arguments themselves
    uint32_t *next_use;  // next argument of the same port, 1 + index
    port *ports[SPARSEC_PORT_SPACES];
    sparsec_allocator allocator;
    uint64_t size; // of the one allocation that holds everything, this struct first
} context;

#define plan (&sparsec_the_plan)
#define model (&sparsec_the_plan.module)

// The tensors of one of the spaces that have ports.
typedef struct side {
    const sparsec_tensor *tensors;
    uint32_t count;
} side;

side side_of(sparsec_space space);

// Makes the kernels see the port's tensor at `data`.
void aim(context *c, port *p, void *data);

// Keeps the first message of a run: printf-style, one line.
void context_fail(context *c, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Takes the context for the calling thread, until context_leave; refuses if another one has it.
sparsec_status context_enter(context *c, sparsec_error *error);
void context_leave(context *c);

#endif
