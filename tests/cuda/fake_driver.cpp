// A libcuda.so.1 without a GPU: device memory is the host's, kernels run in the emulator of tests/cuda_emulator.
//
// It checks what a driver would crash on or, worse, not notice: memory that is not allocated, freed twice or leaked,
// copies past an allocation, launches beyond the limits, calls without a current context, work while a stream is
// captured.  Device memory is filled with NaN.
//
// fake_control tells it what to be: see `Control`; in a process of its own, FAKE_CUDA_KERNELS names the kernels'
// library, and FAKE_CUDA_CAPABILITY is 87 for compute capability 8.7.

#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../cuda_emulator/emulator.h"

// Section: control

struct Control {
    int version;          // of the driver: 13000
    int devices;          // how many GPUs
    int capability;       // 80 for compute capability 8.0
    uint64_t memory;      // bytes of each GPU
    int init_result;      // of cuInit
    int load_result;      // of cuModuleLoadData
    int order;            // of the emulator's threads
    const char* emulated; // path of the library with the kernels
};

struct Counters {
    int allocations, launches, graph_launches, captures, contexts, modules, copies_between;
    char trouble[512]; // the first misuse
};

static int capability() {
    const char* wanted = getenv("FAKE_CUDA_CAPABILITY");
    return wanted ? atoi(wanted) : 80;
}

static Control control = {13000, 1, capability(), 1ull << 34, 0, 0, 0, getenv("FAKE_CUDA_KERNELS")};
static Counters counters;

static int trouble(const std::string& what, int result = 1) {
    if (!counters.trouble[0]) strncpy(counters.trouble, what.c_str(), sizeof counters.trouble - 1);
    return result;
}

struct Allocation {
    size_t bytes;
    int device; // -1: pinned host memory
};

struct Module {
    void* library;
    void (*allow)(void*, size_t), (*forbid)(void*); // what kernels may access, where the library is checked
    const emu_kernel* kernels;
    int (*launch)(const char*, const unsigned*, const unsigned*, unsigned, void**, int, char*, size_t);
};

struct Stream {
    bool capturing = false;
    std::vector<std::function<int()>> recorded;
};

using Graph = std::vector<std::function<int()>>;

struct Function {
    Module* module;
    std::string name;
    int dynamic_shared = 48 * 1024;
};

static std::map<uint64_t, Allocation> memory;
static std::vector<Module*> modules;
static std::vector<int> contexts; // current ones, of the calling thread; tests use one
static std::map<int, int> retained;
static int contents[16]; // addresses that stand for primary contexts
static Stream default_stream;

static bool current() { return !contexts.empty() || trouble("a call without a current context", 0); }

static const Allocation* allocation(uint64_t at, size_t bytes) {
    auto after = memory.upper_bound(at);
    if (after == memory.begin()) return nullptr;
    auto found = std::prev(after);
    return at + bytes <= found->first + found->second.bytes ? &found->second : nullptr;
}

static bool on_device(uint64_t at, size_t bytes) {
    const Allocation* found = allocation(at, bytes);
    return found && found->device >= 0;
}

static Stream& stream_of(Stream* stream) { return stream ? *stream : default_stream; }

// Does it now, or later where the stream is captured.
static int enqueue(Stream* stream, std::function<int()> work) {
    if (!current()) return 201;
    Stream& s = stream_of(stream);
    if (!s.capturing) return work();
    s.recorded.push_back(work);
    return 0;
}

// Section: the driver API

extern "C" {

void fake_control(const Control* wanted) {
    static std::string path;
    control = *wanted;
    path = wanted->emulated ? wanted->emulated : "";
    control.emulated = wanted->emulated ? path.c_str() : nullptr;
}
void fake_counters(Counters* found) { *found = counters; }
void fake_reset(void) { counters = Counters{}; }
size_t fake_live(void) { return memory.size(); }

int cuInit(unsigned) { return control.init_result; }
int cuDriverGetVersion(int* version) { return *version = control.version, 0; }
int cuGetErrorName(int result, const char** name) {
    static const std::map<int, const char*> names = {
        {1, "CUDA_ERROR_INVALID_VALUE"},   {2, "CUDA_ERROR_OUT_OF_MEMORY"},  {100, "CUDA_ERROR_NO_DEVICE"},
        {201, "CUDA_ERROR_INVALID_CONTEXT"}, {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"}, {500, "CUDA_ERROR_NOT_FOUND"},
        {719, "CUDA_ERROR_LAUNCH_FAILED"}, {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"},
        {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
    };
    auto found = names.find(result);
    *name = found == names.end() ? nullptr : found->second;
    return found == names.end();
}
int cuDeviceGetCount(int* count) { return *count = control.devices, 0; }
int cuDeviceGet(int* handle, int ordinal) {
    return ordinal < control.devices ? (*handle = 100 + ordinal, 0) : trouble("cuDeviceGet of no device");
}
int cuDeviceGetName(char* name, int size, int) { return strncpy(name, "Fake GPU", size), 0; }
int cuDeviceGetAttribute(int* value, int what, int) {
    *value = what == 75 ? control.capability / 10 : what == 76 ? control.capability % 10 : 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int handle) {
    retained[handle]++, counters.contexts++;
    *context = contents + (handle - 100);
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int handle) {
    counters.contexts--;
    return --retained[handle] < 0 ? trouble("a context is released twice") : 0;
}
int cuCtxPushCurrent_v2(void* context) { return contexts.push_back(int((int*)context - contents)), 0; }
int cuCtxPopCurrent_v2(void** context) {
    if (!current()) return 201;
    *context = contents + contexts.back();
    contexts.pop_back();
    return 0;
}

int cuModuleLoadData(Module** module, const void* image) {
    if (!current()) return 201;
    uint32_t magic;
    memcpy(&magic, image, 4);
    if (magic != 0xba55ed50u) return trouble("the module is no fat binary", 200);
    if (control.load_result) return control.load_result;
    void* library = control.emulated ? dlopen(control.emulated, RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!library) return trouble("no emulated kernels were given", 209);
    auto kernels = (const emu_kernel* (*)())dlsym(library, "emu_kernels");
    *module = new Module{library, (decltype(Module::allow))dlsym(library, "emu_allow"),
                         (decltype(Module::forbid))dlsym(library, "emu_forbid"), kernels(),
                         (decltype(Module::launch))dlsym(library, "emu_launch")};
    for (auto& [at, a] : memory) (*module)->allow((void*)at, a.bytes);
    modules.push_back(*module);
    counters.modules++;
    return 0;
}
int cuModuleUnload(Module* module) {
    counters.modules--;
    std::erase(modules, module);
    for (auto& [at, _] : memory) module->forbid((void*)at); // the library may be loaded once more
    dlclose(module->library);
    delete module;
    return current() ? 0 : 201;
}
int cuModuleGetFunction(Function** function, Module* module, const char* name) {
    static std::map<std::string, Function> functions; // they live as long as the process
    for (const emu_kernel* k = module->kernels; k->name; k++)
        if (!strcmp(k->name, name)) {
            *function = &(functions[std::to_string((uintptr_t)module) + name] = Function{module, name});
            return 0;
        }
    return 500;
}
int cuFuncSetAttribute(Function* function, int what, int value) {
    if (what != 8) return trouble("an attribute of functions that nobody needs");
    function->dynamic_shared = value;
    return value <= 227 * 1024 ? 0 : 1;
}

int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    if (!current()) return 201;
    if (!bytes) return trouble("an allocation of no bytes");
    size_t used = bytes;
    for (auto& [_, a] : memory) used += a.device == contexts.back() ? a.bytes : 0;
    if (used > control.memory) return 2;
    void* data = aligned_alloc(256, (bytes + 255) & ~size_t(255));
    memset(data, 0xff, bytes); // NaN
    *address = (uint64_t)data;
    memory[*address] = {bytes, contexts.back()};
    for (Module* m : modules) m->allow(data, bytes);
    counters.allocations++;
    return 0;
}
int cuMemAllocHost_v2(void** data, size_t bytes) {
    if (!current()) return 201;
    *data = aligned_alloc(256, (bytes + 255) & ~size_t(255));
    memset(*data, 0xff, bytes);
    memory[(uint64_t)*data] = {bytes, -1};
    return 0;
}
int cuMemFree_v2(uint64_t address) {
    if (!current()) return 201;
    if (!memory.erase(address)) return trouble("memory is freed that is not allocated");
    for (Module* m : modules) m->forbid((void*)address);
    free((void*)address);
    return 0;
}
int cuMemFreeHost(void* data) { return cuMemFree_v2((uint64_t)data); }
int cuPointerGetAttribute(void* value, int what, uint64_t address) {
    const Allocation* found = allocation(address, 1);
    if (!found) return 1;
    if (what == 2) *(unsigned*)value = found->device < 0 ? 1 : 2;
    if (what == 9) *(int*)value = found->device < 0 ? 0 : found->device;
    return 0;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Stream* stream) {
    if (!on_device(to, bytes)) return trouble("a copy to the device misses its memory");
    return enqueue(stream, [=] { return memcpy((void*)to, from, bytes), 0; });
}
int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Stream* stream) {
    if (!on_device(from, bytes)) return trouble("a copy from the device misses its memory");
    return enqueue(stream, [=] { return memcpy(to, (void*)from, bytes), 0; });
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Stream* stream) {
    if (!on_device(to, bytes) || !on_device(from, bytes)) return trouble("a copy on the device misses its memory");
    return enqueue(stream, [=] { return counters.copies_between++, memcpy((void*)to, (void*)from, bytes), 0; });
}
int cuMemsetD32Async(uint64_t to, unsigned value, size_t count, Stream* stream) {
    if (!on_device(to, 4 * count)) return trouble("a fill misses its memory");
    return enqueue(stream, [=] {
        for (size_t i = 0; i < count; i++) ((unsigned*)to)[i] = value;
        return 0;
    });
}

int cuStreamCreate(Stream** stream, unsigned) { return current() ? (*stream = new Stream, 0) : 201; }
int cuStreamDestroy_v2(Stream* stream) { return delete stream, current() ? 0 : 201; }
int cuStreamSynchronize(Stream* stream) {
    if (stream_of(stream).capturing) return trouble("a stream is waited for while it is captured", 900);
    return current() ? 0 : 201;
}

int cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, Stream* stream, void** args, void** extra) {
    if (extra) return trouble("a launch with extra arguments");
    if (gy > 65535 || gz > 65535 || bx * by * bz > 1024) return trouble("a launch beyond the limits: " + f->name);
    if (int(shared) > f->dynamic_shared) return trouble("shared memory was not asked for: " + f->name);
    int parameters = 0;
    for (const emu_kernel* k = f->module->kernels; k->name; k++)
        if (f->name == k->name) parameters = k->parameters;
    std::vector<uint64_t> values; // arguments are copied at the call
    for (int i = 0; i < parameters; i++) {
        values.push_back(*(uint64_t*)args[i]);
        if (!on_device(values.back(), 1)) return trouble("an argument is no device memory: " + f->name, 719);
    }
    return enqueue(stream, [=]() mutable {
        std::vector<void*> addresses;
        for (auto& value : values) addresses.push_back(&value);
        unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
        char message[400] = "";
        counters.launches++;
        if (!f->module->launch(f->name.c_str(), grid, block, shared, addresses.data(), control.order, message,
                               sizeof message))
            return 0;
        return trouble(message, 719);
    });
}

int cuStreamBeginCapture_v2(Stream* stream, int mode) {
    if (mode != 1) return trouble("a capture that other threads disturb");
    stream->capturing = true;
    stream->recorded.clear();
    return 0;
}
int cuStreamEndCapture(Stream* stream, Graph** graph) {
    stream->capturing = false;
    counters.captures++;
    *graph = new Graph(stream->recorded);
    return 0;
}
int cuGraphInstantiateWithFlags(Graph** exec, Graph* graph, unsigned long long) {
    return *exec = new Graph(*graph), 0;
}
int cuGraphDestroy(Graph* graph) { return delete graph, 0; }
int cuGraphExecDestroy(Graph* graph) { return delete graph, 0; }
int cuGraphLaunch(Graph* graph, Stream*) {
    counters.graph_launches++;
    for (auto& work : *graph)
        if (int result = work()) return result;
    return 0;
}

int cuEventCreate(uint64_t** event, unsigned) { return *event = new uint64_t(0), 0; }
int cuEventDestroy_v2(uint64_t* event) { return delete event, 0; }
int cuEventRecord(uint64_t* event, Stream* stream) {
    static uint64_t clock = 0;
    return enqueue(stream, [=] { return *event = ++clock, 0; });
}
int cuEventElapsedTime(float* milliseconds, uint64_t* start, uint64_t* end) {
    if (!*start || *end <= *start) return trouble("events are not recorded in order", 600);
    return *milliseconds = float(*end - *start), 0;
}
}
