// pool.c - the threads of a context
//
// A launch is one 64-bit ticket: generation, number of tasks, next task.  Whoever raises `next` by
// compare-and-swap owns that task; the generation makes a late thread's swap fail, so the launcher
// waits for tasks, never for threads, and a thread that sleeps delays nobody.  Idle threads spin
// for some ten microseconds, the gap between two kernels, then sleep.

#include "core.h"

#ifndef SPARSEC_NO_THREADS

#include <pthread.h>
#include <signal.h>

#include "floats.h"

#define SPINS 2000
#define STACK_SIZE (1 << 20)

typedef struct pool {
    _Alignas(64) _Atomic uint64_t ticket; // generation << 32 | tasks << 16 | next
    _Atomic(tvm_task *) task;
    _Atomic(void *) closure;
    _Alignas(64) atomic_int pending; // tasks that are not finished; at first, threads that are not up
    atomic_int failed;
    _Alignas(64) atomic_int sleepers;
    atomic_bool launcher_sleeps;
    atomic_bool stop;
    pthread_mutex_t mutex;
    pthread_cond_t work, done;
    worker *workers;
    int started; // threads, not counting the caller of run
    pthread_t threads[];
} pool;

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static bool has_work(uint64_t ticket) { return (ticket & 0xffff) < (ticket >> 16 & 0xffff); }

static void count_down(pool *p) {
    if (atomic_fetch_sub(&p->pending, 1) != 1 || !atomic_load(&p->launcher_sleeps)) return;
    pthread_mutex_lock(&p->mutex);
    pthread_cond_signal(&p->done);
    pthread_mutex_unlock(&p->mutex);
}

static void wait_for_pending(pool *p) {
    for (int i = 0; i < SPINS && atomic_load_explicit(&p->pending, memory_order_acquire); i++) relax();
    if (!atomic_load_explicit(&p->pending, memory_order_acquire)) return;
    pthread_mutex_lock(&p->mutex);
    atomic_store(&p->launcher_sleeps, true);
    while (atomic_load(&p->pending)) pthread_cond_wait(&p->done, &p->mutex);
    atomic_store(&p->launcher_sleeps, false);
    pthread_mutex_unlock(&p->mutex);
}

// Takes and runs tasks until there are none.
static void drain(pool *p, worker *w) {
    for (;;) {
        uint64_t ticket = atomic_load_explicit(&p->ticket, memory_order_acquire);
        if (!has_work(ticket)) return;
        // These belong to the ticket if the swap succeeds: they change only between generations.
        tvm_task *task = atomic_load_explicit(&p->task, memory_order_relaxed);
        void *closure = atomic_load_explicit(&p->closure, memory_order_relaxed);
        if (!atomic_compare_exchange_strong(&p->ticket, &ticket, ticket + 1)) continue;
        if (worker_call(w, task, closure, (int)(ticket & 0xffff), (int)(ticket >> 16 & 0xffff)))
            atomic_store_explicit(&p->failed, 1, memory_order_relaxed);
        count_down(p);
    }
}

static void sleep_until_work(pool *p) {
    for (int i = 0; i < SPINS; i++) {
        if (has_work(atomic_load_explicit(&p->ticket, memory_order_relaxed))) return;
        relax();
    }
    pthread_mutex_lock(&p->mutex);
    atomic_fetch_add(&p->sleepers, 1);
    while (!has_work(atomic_load(&p->ticket)) && !atomic_load(&p->stop)) pthread_cond_wait(&p->work, &p->mutex);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->mutex);
}

static void *thread_main(void *argument) {
    worker *w = argument;
    pool *p = w->context->pool;
    floats state;
    floats_enter(&state);
    set_current_worker(w); // the first touch, for which libc makes the thread's slot
    count_down(p);
    while (!atomic_load_explicit(&p->stop, memory_order_relaxed)) {
        sleep_until_work(p);
        drain(p, w);
    }
    return 0;
}

static void wake_workers(pool *p) {
    pthread_mutex_lock(&p->mutex);
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->mutex);
}

int pool_launch(pool *p, tvm_task *task, void *closure, int tasks) {
    uint64_t generation = (atomic_load_explicit(&p->ticket, memory_order_relaxed) >> 32) + 1;
    atomic_store_explicit(&p->task, task, memory_order_relaxed);
    atomic_store_explicit(&p->closure, closure, memory_order_relaxed);
    atomic_store_explicit(&p->failed, 0, memory_order_relaxed);
    atomic_store_explicit(&p->pending, tasks, memory_order_relaxed);
    atomic_store(&p->ticket, generation << 32 | (uint64_t)tasks << 16);
    if (atomic_load(&p->sleepers)) wake_workers(p);
    drain(p, p->workers);
    wait_for_pending(p);
    return atomic_load_explicit(&p->failed, memory_order_relaxed);
}

uint64_t pool_size(int threads) { return threads > 1 ? sizeof(pool) + sizeof(pthread_t) * (uint64_t)threads : 0; }

int pool_start(pool *p, worker *workers, int threads) {
    *p = (pool){.workers = workers, .pending = threads - 1};
    pthread_mutex_init(&p->mutex, 0);
    pthread_cond_init(&p->work, 0);
    pthread_cond_init(&p->done, 0);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_SIZE);
    sigset_t all, before; // signals are the application's: its own threads shall handle them
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (p->started < threads - 1 &&
           !pthread_create(&p->threads[p->started], &attributes, thread_main, workers + 1 + p->started))
        p->started++;
    pthread_sigmask(SIG_SETMASK, &before, 0);
    pthread_attr_destroy(&attributes);
    if (p->started < threads - 1) {
        pool_stop(p);
        return -1;
    }
    wait_for_pending(p); // so that nothing of starting is left for the first run
    return 0;
}

void pool_stop(pool *p) {
    if (!p) return;
    atomic_store(&p->stop, true);
    wake_workers(p);
    for (int i = 0; i < p->started; i++) pthread_join(p->threads[i], 0);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->mutex);
}

#else // MAX_THREADS is 1: there is no pool, and nobody calls these with one

uint64_t pool_size(int threads) { return threads > 1; }

int pool_start(struct pool *pool, worker *workers, int threads) { return (void)pool, (void)workers, threads; }

void pool_stop(struct pool *pool) { (void)pool; }

int pool_launch(struct pool *pool, tvm_task *task, void *closure, int tasks) {
    return (void)pool, (void)task, (void)closure, tasks;
}

#endif
