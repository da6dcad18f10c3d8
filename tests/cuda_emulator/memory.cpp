// What a checked library does about every load and store of the generated code.
//
// The generated code is compiled with GCC's -fsanitize=thread, which calls a function before each access, and
// -fsanitize=bounds, which calls one for an index outside of an array.  These functions are ours: they know
// which memory is whose, and which barriers order two accesses.
#include "emulator.h"

#include <cstring>
#include <map>

namespace emu {

bool in_a_stack(const void* address);

namespace {

// Threads in a byte's history: one by its number, or several.
constexpr uint16_t kNobody = 0xffff, kSeveral = 0xfffe, kWarpBase = 0x8000;

// The moment of an access: counts of the barriers that its block and its warp had passed.
struct Moment {
    uint64_t block, warp;
};

struct Byte {
    uint16_t writer = kNobody, reader = kNobody, copier = kNobody;
    bool ours = false, written = false;
    Moment wrote{}, read{};
};

constexpr size_t kArena = 256 * 1024;
Byte shadow[kArena];
size_t shadow_used;
std::map<uintptr_t, size_t> allowed;

Moment now(int thread) { return {block_generation(), warp_generation(thread / kWarp)}; }

// Whether what `who` did at `then` is ordered before what `thread` does now, by a barrier of both.
bool ordered(uint16_t who, const Moment& then, int thread) {
    if (who == kNobody || who == thread || then.block < block_generation()) return true;
    if (who == kSeveral) return false;
    int warp = who >= kWarpBase ? who - kWarpBase : who / kWarp;
    return warp == thread / kWarp && then.warp < warp_generation(warp);
}

// `who` for messages.
int one_of(uint16_t who) { return who >= kWarpBase ? (who - kWarpBase) * kWarp : who; }

void read_byte(Byte& byte, size_t at, int thread) {
    if (byte.copier != kNobody)
        fail("shared byte %zu: read while the cp.async of thread %d is under way", at, byte.copier);
    if (!byte.written) fail("shared byte %zu: read, but nobody has written it", at);
    if (!ordered(byte.writer, byte.wrote, thread))
        fail("shared byte %zu: read without a barrier after the write of thread %d", at, byte.writer);
    if (ordered(byte.reader, byte.read, thread))
        byte.reader = thread;
    else if (byte.reader != kSeveral)
        byte.reader = one_of(byte.reader) / kWarp == thread / kWarp ? kWarpBase + thread / kWarp : kSeveral;
    byte.read = now(thread);
}

void write_byte(Byte& byte, size_t at, int thread) {
    if (byte.copier != kNobody)
        fail("shared byte %zu: written while the cp.async of thread %d is under way", at, byte.copier);
    if (!ordered(byte.writer, byte.wrote, thread))
        fail("shared byte %zu: written without a barrier after the write of thread %d", at, byte.writer);
    if (!ordered(byte.reader, byte.read, thread))
        fail("shared byte %zu: written without a barrier after the read of %s", at,
             byte.reader < kWarpBase ? "another thread" : "other threads");
    byte.writer = thread;
    byte.wrote = now(thread);
    byte.written = true;
}

void check_global(const void* address, size_t bytes) {
    uintptr_t at = reinterpret_cast<uintptr_t>(address);
    auto region = allowed.upper_bound(at);
    if (region != allowed.begin()) {
        --region;
        if (at + bytes <= region->first + region->second) return;
        if (at < region->first + region->second + 65536)
            fail("global memory: %zu bytes at offset %zu of a buffer of %zu", bytes, size_t(at - region->first),
                 region->second);
    }
    fail("global memory: %zu bytes at %p, which is in no buffer", bytes, address);
}

}  // namespace

#ifdef EMU_CHECKED

extern "C" char __ehdr_start[], _end[];

void access(const void* address, size_t bytes, Kind kind, int thread) {
    const char* at = static_cast<const char*>(address);
    if (in_a_stack(at) || (at >= __ehdr_start && at < _end)) return;
    if (at < shared_base || at >= shared_base + kArena) return check_global(at, bytes);
    size_t first = at - shared_base;
    if (first + bytes > shadow_used) fail("shared memory: %zu bytes at %zu, past its end", bytes, first);
    for (size_t i = first; i < first + bytes; ++i) {
        Byte& byte = shadow[i];
        if (!byte.ours) fail("shared byte %zu: outside of every array", i);
        if (kind == kRead) read_byte(byte, i, thread);
        if (kind == kWrite) write_byte(byte, i, thread);
        if (kind == kAtomic && !byte.written) fail("shared byte %zu: an atomic, but nobody has written it", i);
    }
}

void copy_starts(const void* to, size_t bytes, int thread) {
    access(to, bytes, kWrite, thread);
    size_t first = static_cast<const char*>(to) - shared_base;
    for (size_t i = first; i < first + bytes; ++i) shadow[i].copier = thread;
}

void copy_lands(const void* to, size_t bytes, int thread) {
    size_t first = static_cast<const char*>(to) - shared_base;
    for (size_t i = first; i < first + bytes; ++i) shadow[i].copier = kNobody;
    access(to, bytes, kWrite, thread);
}

#else

void access(const void*, size_t, Kind, int) {}
void copy_starts(const void*, size_t, int) {}
void copy_lands(const void*, size_t, int) {}

#endif


void new_block() {
    for (size_t i = 0; i < shadow_used; ++i) shadow[i] = Byte();
    shadow_used = 0;
}

void shared_region(const void* base, size_t bytes) {
    size_t first = static_cast<const char*>(base) - shared_base;
    for (size_t i = first; i < first + bytes; ++i) shadow[i].ours = true;
    shadow_used = first + bytes;
}

namespace {

void from_compiler(void* address, size_t bytes, Kind kind, bool aligned) {
    if (!current) return;
    if (aligned && reinterpret_cast<uintptr_t>(address) % bytes)
        fail("%zu bytes at %p: a misaligned address", bytes, address);
    access(address, bytes, kind, current->thread);
}

}  // namespace
}  // namespace emu

void emu_allow(void* base, size_t bytes) { emu::allowed[reinterpret_cast<uintptr_t>(base)] = bytes; }
void emu_forbid(void* base) { emu::allowed.erase(reinterpret_cast<uintptr_t>(base)); }

// Section: what the compiler calls

#define EMU_ACCESS(size)                                                                                  \
    void __tsan_read##size(void* p) { emu::from_compiler(p, size, emu::kRead, true); }                    \
    void __tsan_write##size(void* p) { emu::from_compiler(p, size, emu::kWrite, true); }                  \
    void __tsan_unaligned_read##size(void* p) { emu::from_compiler(p, size, emu::kRead, false); }         \
    void __tsan_unaligned_write##size(void* p) { emu::from_compiler(p, size, emu::kWrite, false); }

extern "C" {
EMU_ACCESS(1)
EMU_ACCESS(2)
EMU_ACCESS(4)
EMU_ACCESS(8)
EMU_ACCESS(16)
void __tsan_read_range(void* p, size_t bytes) { emu::from_compiler(p, bytes, emu::kRead, false); }
void __tsan_write_range(void* p, size_t bytes) { emu::from_compiler(p, bytes, emu::kWrite, false); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

struct emu_ubsan_place {
    const char* file;
    uint32_t line, column;
};
struct emu_ubsan_type {
    uint16_t kind, info;
    char name[];
};
struct emu_ubsan_bounds {
    emu_ubsan_place place;
    const emu_ubsan_type* array;
    const emu_ubsan_type* index;
};
void __ubsan_handle_out_of_bounds(emu_ubsan_bounds* data, uintptr_t index) {
    emu::fail("index %ld outside of an array of type %s, line %u of the generated source", long(index),
              data->array->name, data->place.line);
}
}
