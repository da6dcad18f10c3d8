// bare.c - instead of system.c where there is no system: the caller gives the memory, one thread runs
//
// Profiles are zeros, since nobody tells the time.

#include "core.h"

static void *no_memory(void *user, size_t bytes, size_t alignment) {
    return (void)user, (void)bytes, (void)alignment, (void *)0;
}

static void release(void *user, void *memory, size_t bytes) { (void)user, (void)memory, (void)bytes; }

const sparsec_allocator system_memory = {no_memory, release, 0};

sparsec_status default_threads(int *threads, sparsec_error *error) { return (void)error, *threads = 1, SPARSEC_OK; }

int process_id(void) { return 0; }

sparsec_status fail(sparsec_error *error, sparsec_status kind, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfail(error, kind, format, args);
    va_end(args);
    return kind;
}

double now(void) { return 0; }
