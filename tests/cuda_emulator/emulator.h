// A CUDA grid on one CPU thread: every CUDA thread is a fiber, blocks run one after another.
//
// The first section is the C interface, which tests and a fake driver library call; the second is what the
// generated code and the files beside this one share.
#pragma once
#include <cstddef>
#include <cstdint>

// Section: C interface

extern "C" {

// A kernel of the generated source.  `max_threads` is its launch bound, 1024 where it has none.
struct emu_kernel {
    const char* name;
    void (*call)(void** args);
    int parameters;
    int max_threads;
};

// In which order the threads of a block run, and when an asynchronous copy happens.
enum emu_order {
    EMU_ROUND_ROBIN = 0,      // every thread up to its next barrier, in turn; copies happen when waited for
    EMU_WARPS_FORWARDS = 1,   // one warp as far as it can go, then the next; copies when waited for
    EMU_WARPS_BACKWARDS = 2,  // the last warp, lane and block first; copies when issued
};

// All kernels of this library, ended by one without a name.
const emu_kernel* emu_kernels(void);

// Runs a kernel; `args` as cuLaunchKernel takes them.  0, or 1 with the reason in `message`.
int emu_launch(const char* kernel, const unsigned grid[3], const unsigned block[3], unsigned shared_bytes,
               void** args, int order, char* message, size_t message_bytes);

// What kernels may access as global memory; only a checked library looks.
void emu_allow(void* base, size_t bytes);
void emu_forbid(void* base);
}

// Section: inside

struct emu_dim {
    unsigned x, y, z;
};

namespace emu {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;
constexpr size_t kStaticShared = 48 * 1024;
constexpr size_t kMaxShared = 227 * 1024;

struct AsyncCopy {
    char* to;
    const char* from;
    unsigned bytes, source_bytes, group;
};

struct Fiber {
    void* stack_pointer;
    emu_dim index;
    int thread, lane, warp;
    bool done, at_active_mask;
    const uint64_t* waits_for;  // a generation counter, and the value that it must leave
    uint64_t waits_while;
    unsigned active_mask;
    unsigned groups_committed;
};

extern Fiber* current;  // null outside of a kernel
extern char* shared_base;
extern int order;

uint64_t block_generation();
uint64_t warp_generation(int warp);

// Ends the launch with a message that names kernel, block and thread.  Called from a fiber, never returns.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// All lanes of `mask` that are alive meet here; the last one runs `act` on everybody's packs, by lane.
// `what` names the instruction: lanes that meet must be at the same one.
using Act = void (*)(void** packs, unsigned lanes);
void meet(unsigned mask, const char* what, void* pack, Act act);

void sync_block();
void sync_warp(unsigned mask);
unsigned active_mask();

void* dynamic_shared();
// The same memory for all threads of a block; `site` tells declarations apart.
void* static_shared(int site, size_t bytes, size_t alignment);

// memory.cpp.  An access by the current thread, or by `thread`; no-ops in a library that is not checked.
enum Kind { kRead, kWrite, kAtomic };
void access(const void* address, size_t bytes, Kind kind, int thread);
void copy_starts(const void* to, size_t bytes, int thread);
void copy_lands(const void* to, size_t bytes, int thread);
void new_block();
void shared_region(const void* base, size_t bytes);

// ptx.cpp
void forget_copies();

}  // namespace emu
