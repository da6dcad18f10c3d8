// memory.c - contexts' memory from the system: anonymous pages, huge ones where there are enough of them

#include <sys/mman.h>

#include "core.h"

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
