// system.c - what the core asks the system for: memory, CPUs, process, time; bare.c is for systems without

#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../cpus.h"
#include "core.h"

// Section: contexts' memory: anonymous pages, huge ones where there are enough of them

static uint64_t extent(uint64_t bytes) {
    uint64_t unit = bytes >= HUGE_PAGE ? HUGE_PAGE : 1;
    return (bytes + unit - 1) & -unit;
}

// Large blocks begin at the border of a huge page: one more is mapped, and what lies outside given back.
static void *map_pages(void *user, size_t bytes, size_t alignment) {
    (void)user, (void)alignment; // a page's at least
    uint64_t size = extent(bytes), slack = size >= HUGE_PAGE ? HUGE_PAGE : 0;
    char *map = mmap(0, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) return 0;
    if (!slack) return map;
    uint64_t before = -(uintptr_t)map % HUGE_PAGE;
    if (before) munmap(map, before);
    munmap(map + before + size, slack - before);
    madvise(map + before, size, MADV_HUGEPAGE); // fewer TLB misses where the kernel follows the advice
    return map + before;
}

static void unmap_pages(void *user, void *memory, size_t bytes) {
    (void)user;
    munmap(memory, extent(bytes));
}

const sparsec_allocator system_memory = {map_pages, unmap_pages, 0};

// Section: threads, process, time

sparsec_status default_threads(int *threads, sparsec_error *error) {
    const char *setting = getenv("SPARSEC_NUM_THREADS");
    if (!setting || !*setting) {
        *threads = usable_cpus();
        if (*threads > MAX_THREADS) *threads = MAX_THREADS;
        return SPARSEC_OK;
    }
    char *end;
    long value = strtol(setting, &end, 10);
    if (*end || value < 1 || value > MAX_THREADS)
        return fail(error, SPARSEC_E_INPUT, "SPARSEC_NUM_THREADS must be a number from 1 to %d, found '%.40s'",
                    MAX_THREADS, setting);
    *threads = (int)value;
    return SPARSEC_OK;
}

int process_id(void) { return getpid(); }

double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
