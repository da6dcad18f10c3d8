// Fibers, barriers and launches.
#include "emulator.h"
#include "switch.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

emu_dim threadIdx, blockIdx, blockDim, gridDim;

namespace emu {

Fiber* current;
char* shared_base;
int order;

namespace {

constexpr size_t kStack = 256 * 1024, kPage = 4096;

// Where lanes of one mask meet.  Masks of one warp that are waited for at the same time are disjoint.
struct Meeting {
    unsigned mask, arrived;
    const char* what;
    Act act;
    void* packs[kWarp];
    uint64_t generation;
};

struct Warp {
    unsigned live;
    uint64_t generation;  // of __syncwarp: what orders memory within a warp
    Meeting meetings[kWarp];  // by the lowest lane of the mask
};

Fiber fibers[kMaxThreads];
Warp warps[kMaxThreads / kWarp];
int threads, live, arrived;
uint64_t generation;
char* stacks;
void* scheduler_stack;
const emu_kernel* kernel;
void** arguments;
bool failed;
char reason[1024];

size_t dynamic_bytes, shared_used;
constexpr int kSites = 1024;
char* sites[kSites];

void back_to_scheduler() { emu_switch(&current->stack_pointer, scheduler_stack); }

void wait_for(const uint64_t& counter) {
    current->waits_for = &counter;
    current->waits_while = counter;
    while (counter == current->waits_while) back_to_scheduler();
    current->waits_for = nullptr;
}

void finish_block_barrier_if_full() {
    if (live > 0 && arrived >= live) {
        arrived = 0;
        ++generation;
    }
}

void finish_if_full(Warp& warp, Meeting& meeting) {
    unsigned expected = meeting.mask & warp.live;
    if (meeting.arrived == 0 || (meeting.arrived & expected) != expected) return;
    meeting.act(meeting.packs, meeting.arrived);
    meeting.arrived = 0;
    ++meeting.generation;
}

void fiber_main() {
    kernel->call(arguments);
    Fiber& me = *current;
    Warp& warp = warps[me.warp];
    me.done = true;
    --live;
    warp.live &= ~(1u << me.lane);
    finish_block_barrier_if_full();
    for (Meeting& meeting : warp.meetings) finish_if_full(warp, meeting);
    back_to_scheduler();
    abort();
}

void start(Fiber& fiber, int thread) {
    fiber = Fiber();
    fiber.thread = thread;
    fiber.lane = thread % kWarp;
    fiber.warp = thread / kWarp;
    fiber.index = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / blockDim.x / blockDim.y};
    // The stack looks as if emu_switch had saved zeros, to return to fiber_main.
    void** saved = reinterpret_cast<void**>(stacks + (thread + 1) * kStack) - kSaved;
    memset(saved, 0, kSaved * sizeof *saved);
    saved[kReturn] = reinterpret_cast<void*>(fiber_main);
    fiber.stack_pointer = saved;
}

bool run(Fiber& fiber) {
    if (fiber.done || fiber.at_active_mask) return false;
    if (fiber.waits_for && *fiber.waits_for == fiber.waits_while) return false;
    current = &fiber;
    threadIdx = fiber.index;
    emu_switch(&scheduler_stack, fiber.stack_pointer);
    return true;
}

// The lanes that wait in __activemask() while no other lane of their warp can move are the active ones.
bool settle_active_mask(int warp) {
    unsigned mask = 0;
    int first = warp * kWarp, last = first + kWarp < threads ? first + kWarp : threads;
    for (int t = first; t < last; ++t) {
        if (fibers[t].done) continue;
        if (fibers[t].at_active_mask) mask |= 1u << fibers[t].lane;
    }
    for (int t = first; t < last; ++t) {
        if (!fibers[t].at_active_mask) continue;
        fibers[t].active_mask = mask;
        fibers[t].at_active_mask = false;
    }
    return mask != 0;
}

bool run_warp_once(int warp, bool backwards) {
    bool moved = false;
    for (int i = 0; i < kWarp && !failed; ++i) {
        int t = warp * kWarp + (backwards ? kWarp - 1 - i : i);
        if (t < threads) moved |= run(fibers[t]);
    }
    return moved;
}

bool run_all_once() {
    int count = (threads + kWarp - 1) / kWarp;
    bool moved = false;
    for (int i = 0; i < count && !failed; ++i) {
        int warp = order == EMU_WARPS_BACKWARDS ? count - 1 - i : i;
        bool once = run_warp_once(warp, order == EMU_WARPS_BACKWARDS);
        once = once || settle_active_mask(warp);
        moved |= once;
        if (order != EMU_ROUND_ROBIN && once && !failed) --i;  // this warp again
    }
    return moved;
}

void say_where_it_hangs() {
    int at_barrier = 0, first = -1;
    for (int t = 0; t < threads; ++t) {
        if (fibers[t].done) continue;
        if (fibers[t].waits_for == &generation) ++at_barrier;
        if (first < 0) first = t;
    }
    const char* other = "";
    for (Warp& warp : warps)
        for (Meeting& meeting : warp.meetings)
            if (meeting.arrived) other = meeting.what;
    snprintf(reason, sizeof reason,
             "%s: block (%u, %u, %u) hangs: of %d threads that have not ended, %d wait at __syncthreads%s%s",
             kernel->name, blockIdx.x, blockIdx.y, blockIdx.z, live, at_barrier, *other ? ", others at " : "",
             other);
    failed = true;
}

void run_block() {
    memset(warps, 0, sizeof warps);
    memset(sites, 0, sizeof sites);
    live = threads;
    arrived = 0;
    shared_used = dynamic_bytes;
    // Not-a-numbers, so that what is read before it is written shows.
    memset(shared_base, 0xff, kMaxShared);
    forget_copies();
    new_block();
    if (dynamic_bytes) shared_region(shared_base, dynamic_bytes);
    for (int t = 0; t < threads; ++t) {
        start(fibers[t], t);
        warps[t / kWarp].live |= 1u << t % kWarp;
    }
    while (live > 0 && !failed)
        if (!run_all_once() && live > 0 && !failed) say_where_it_hangs();
}

bool map_memory() {
    void* memory = mmap(nullptr, threads * kStack, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void* shared = mmap(nullptr, kMaxShared, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || shared == MAP_FAILED) return false;
    stacks = static_cast<char*>(memory);
    shared_base = static_cast<char*>(shared);
    // A stack that overflows must not go on in its neighbour's.
    for (int t = 0; t < threads; ++t) mprotect(stacks + t * kStack, kPage, PROT_NONE);
    return true;
}

void unmap_memory() {
    munmap(stacks, threads * kStack);
    munmap(shared_base, kMaxShared);
}

const char* why_not(const unsigned g[3], const unsigned b[3], unsigned shared_bytes) {
    for (int i = 0; i < 3; ++i)
        if (!g[i] || !b[i]) return "a grid and a block must not be empty";
    if (g[1] > 65535 || g[2] > 65535) return "a grid has at most 65535 blocks in y and z";
    if (b[2] > 64) return "a block has at most 64 threads in z";
    if (uint64_t(b[0]) * b[1] * b[2] > unsigned(kernel->max_threads)) return "more threads than the launch bound";
    if (shared_bytes > kMaxShared) return "more dynamic shared memory than an architecture has";
    return nullptr;
}

}  // namespace

uint64_t block_generation() { return generation; }
uint64_t warp_generation(int warp) { return warps[warp].generation; }

void fail(const char* format, ...) {
    int length = snprintf(reason, sizeof reason, "%s: block (%u, %u, %u), thread (%u, %u, %u): ", kernel->name,
                          blockIdx.x, blockIdx.y, blockIdx.z, current->index.x, current->index.y,
                          current->index.z);
    va_list list;
    va_start(list, format);
    vsnprintf(reason + length, sizeof reason - length, format, list);
    va_end(list);
    failed = true;
    back_to_scheduler();
    abort();
}

void meet(unsigned mask, const char* what, void* pack, Act act) {
    Warp& warp = warps[current->warp];
    unsigned me = 1u << current->lane;
    if (!(mask & me)) fail("%s: the lane is not in its own mask %#x", what, mask);
    Meeting& meeting = warp.meetings[__builtin_ctz(mask)];
    if (meeting.arrived && (meeting.mask != mask || meeting.what != what))
        fail("lanes of one warp meet at different places: %s with mask %#x, %s with mask %#x", what, mask,
             meeting.what, meeting.mask);
    meeting.mask = mask;
    meeting.what = what;
    meeting.act = act;
    meeting.arrived |= me;
    meeting.packs[current->lane] = pack;
    uint64_t before = meeting.generation;
    finish_if_full(warp, meeting);
    if (meeting.generation == before) wait_for(meeting.generation);
}

void sync_block() {
    uint64_t before = generation;
    ++arrived;
    finish_block_barrier_if_full();
    if (generation == before) wait_for(generation);
}

void sync_warp(unsigned mask) {
    meet(mask, "__syncwarp", nullptr, [](void**, unsigned) { ++warps[current->warp].generation; });
}

unsigned active_mask() {
    current->at_active_mask = true;
    back_to_scheduler();
    return current->active_mask;
}

void* dynamic_shared() { return shared_base; }

void* static_shared(int site, size_t bytes, size_t alignment) {
    if (site >= kSites) fail("more than %d arrays in shared memory", kSites);
    if (!sites[site]) {
        // A gap between arrays belongs to nobody.
        size_t start = (shared_used + 16 + alignment - 1) / alignment * alignment;
        if (start + bytes - dynamic_bytes > kStaticShared)
            fail("more than %zu bytes of static shared memory", kStaticShared);
        if (start + bytes > kMaxShared) fail("more than %zu bytes of shared memory", kMaxShared);
        sites[site] = shared_base + start;
        shared_used = start + bytes;
        shared_region(sites[site], bytes);
    }
    return sites[site];
}

bool in_a_stack(const void* address) {
    return address >= stacks && address < stacks + threads * kStack;
}

}  // namespace emu

int emu_launch(const char* name, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
               void** args, int order, char* message, size_t message_bytes) {
    using namespace emu;
    kernel = emu_kernels();
    while (kernel->name && strcmp(kernel->name, name)) ++kernel;
    if (!kernel->name) {
        snprintf(message, message_bytes, "%s: no such kernel", name);
        return 1;
    }
    const char* wrong = why_not(grid, block, shared_bytes);
    threads = block[0] * block[1] * block[2];
    if (!wrong && !map_memory()) wrong = "out of memory";
    if (wrong) {
        snprintf(message, message_bytes, "%s: not launched: %s", name, wrong);
        return 1;
    }
    emu::order = order;
    arguments = args;
    failed = false;
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    dynamic_bytes = shared_bytes;
    uint64_t count = uint64_t(grid[0]) * grid[1] * grid[2];
    for (uint64_t i = 0; i < count && !failed; ++i) {
        uint64_t b = order == EMU_WARPS_BACKWARDS ? count - 1 - i : i;
        blockIdx = {unsigned(b % grid[0]), unsigned(b / grid[0] % grid[1]), unsigned(b / grid[0] / grid[1])};
        run_block();
    }
    current = nullptr;
    unmap_memory();
    if (failed) snprintf(message, message_bytes, "%s", reason);
    return failed;
}
