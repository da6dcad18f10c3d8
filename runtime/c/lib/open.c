// open.c - models for C users: check an artifact, load its library from sealed memory

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "model.h"

// Section: opening

static bool write_all(int fd, span data) {
    while (data.size) {
        ssize_t n = write(fd, data.data, data.size);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        data.data += n;
        data.size -= (size_t)n;
    }
    return true;
}

// What a library for GPUs exports beside its module.
static sparsec_status find_gpu(sparsec_model *model, sparsec_error *error) {
    const sparsec_gpu *(*entry)(void);
    *(void **)&entry = dlsym(model->handle, "sparsec_gpu_v1");
    if (!entry) return fail(error, SPARSEC_E_ARTIFACT, "the artifact's library does not export sparsec_gpu_v1");
    model->gpu = entry();
    if (model->gpu->abi == SPARSEC_GPU_ABI) return SPARSEC_OK;
    return fail(error, SPARSEC_E_ARTIFACT, "the artifact's library has GPU ABI %u, this runtime speaks ABI %d",
                model->gpu->abi, SPARSEC_GPU_ABI);
}

// Copies the library, hashes the copy and loads just that, after sealing it against changes.  The
// dynamic linker knows libraries by path, so the descriptor stays open: were its number used again,
// the next model would get this one's library.
static sparsec_status load_code(sparsec_model *model, const manifest *m, span code, sparsec_error *error) {
    int seals = F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
    model->code = memfd_create("sparsec-model", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (model->code < 0 || !write_all(model->code, code) || fcntl(model->code, F_ADD_SEALS, seals))
        return fail(error, SPARSEC_E_RUN, "cannot make memory for the model's code: %s", strerror(errno));
    void *copy = mmap(0, code.size, PROT_READ, MAP_PRIVATE, model->code, 0);
    if (copy == MAP_FAILED)
        return fail(error, SPARSEC_E_ARTIFACT, "cannot read the model's code: %s", strerror(errno));
    sparsec_status rc = hash_check(m, m->code->name, (span){copy, code.size}, error);
    munmap(copy, code.size);
    if (rc) return rc;
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", model->code);
    model->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!model->handle) return fail(error, SPARSEC_E_RUN, "the system cannot load the model's code: %s", dlerror());
    const sparsec_module *(*entry)(void);
    *(void **)&entry = dlsym(model->handle, "sparsec_module_v1");
    if (!entry) return fail(error, SPARSEC_E_ARTIFACT, "the artifact's library does not export sparsec_module_v1");
    model->module = entry();
    uint32_t abi = model->module->abi;
    if (!abi || abi > SPARSEC_MODULE_ABI)
        return fail(error, SPARSEC_E_ARTIFACT, "the artifact's library has ABI %u, this runtime speaks ABI 1 to %d", abi,
                    SPARSEC_MODULE_ABI);
    if (model->module->weights_size != (m->weights ? m->weights->size : 0))
        return fail(error, SPARSEC_E_ARTIFACT, "the artifact's library and its manifest describe different models");
    return m->kernels ? find_gpu(model, error) : SPARSEC_OK;
}

// The format's order of checks: structure and sizes, format number, target, hashes; then the code.
static sparsec_status check_and_load(sparsec_model *model, span file, const uint8_t *key, sparsec_error *error) {
    archive a;
    manifest m;
    sparsec_status rc = zip_open(file, &a, error);
    if (!rc) rc = signature_take(&a, key, error);
    if (!rc) rc = manifest_read(&a, &m, error);
    if (!rc) rc = hash_check_all(&a, &m, error);
    if (rc) return rc;
    model->weights = m.weights ? zip_data(&a, m.weights).data : 0;
    model->kernels = m.kernels ? zip_data(&a, m.kernels).data : 0;
    return load_code(model, &m, zip_data(&a, m.code), error);
}

static void *libc_allocate(void *user, size_t bytes, size_t alignment) {
    (void)user, (void)alignment; // a model's needs no more than malloc's
    return malloc(bytes);
}

static void libc_release(void *user, void *memory, size_t bytes) {
    (void)user, (void)bytes;
    free(memory);
}

static const sparsec_allocator libc_memory = {libc_allocate, libc_release, 0};

static sparsec_status open_span(span file, void *map, const uint8_t *key, const sparsec_allocator *allocator,
                                sparsec_model **out, sparsec_error *error) {
    const sparsec_allocator *memory = allocator ? allocator : &libc_memory;
    sparsec_model *model = memory->allocate(memory->user, sizeof *model, _Alignof(sparsec_model));
    if (!model) {
        if (map) munmap(map, file.size);
        return fail(error, SPARSEC_E_RUN, "no memory for a model: %u bytes are needed", (unsigned)sizeof *model);
    }
    *model = (sparsec_model){
        .map = map, .map_size = file.size, .code = -1, .memory = *memory, .own_allocator = allocator != 0};
    sparsec_status rc = check_and_load(model, file, key, error);
    if (!rc)
        *out = model;
    else
        sparsec_close(model);
    return rc;
}

sparsec_status sparsec_open_memory(const void *data, size_t size, const sparsec_allocator *allocator,
                                   sparsec_model **model, sparsec_error *error) {
    if (!data || (uintptr_t)data % 64)
        return fail(error, SPARSEC_E_INPUT, "an artifact in memory must be aligned to 64 bytes");
    return open_span((span){data, size}, 0, 0, allocator, model, error);
}

static sparsec_status open_fd(int fd, const uint8_t *key, const sparsec_allocator *allocator, sparsec_model **model,
                              sparsec_error *error) {
    struct stat status;
    if (fstat(fd, &status)) return fail(error, SPARSEC_E_ARTIFACT, "cannot read the artifact: %s", strerror(errno));
    if (!S_ISREG(status.st_mode)) return fail(error, SPARSEC_E_ARTIFACT, "the artifact is not a regular file");
    size_t size = (size_t)status.st_size;
    if (!size) return fail(error, SPARSEC_E_FORMAT, "not a sparsec artifact: the file is empty");
    void *map = mmap(0, size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) return fail(error, SPARSEC_E_ARTIFACT, "cannot map the artifact: %s", strerror(errno));
    return open_span((span){map, size}, map, key, allocator, model, error);
}

sparsec_status sparsec_open_fd(int fd, const sparsec_allocator *allocator, sparsec_model **model,
                               sparsec_error *error) {
    return open_fd(fd, 0, allocator, model, error);
}

static sparsec_status open_path(const char *path, const uint8_t *key, const sparsec_allocator *allocator,
                                sparsec_model **model, sparsec_error *error) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fail(error, SPARSEC_E_ARTIFACT, "cannot open '%.500s': %s", path, strerror(errno));
    sparsec_status rc = open_fd(fd, key, allocator, model, error);
    close(fd);
    return rc;
}

sparsec_status sparsec_open(const char *path, const sparsec_allocator *allocator, sparsec_model **model,
                            sparsec_error *error) {
    return open_path(path, 0, allocator, model, error);
}

sparsec_status sparsec_open_signed(const char *path, const uint8_t *key, const sparsec_allocator *allocator,
                                   sparsec_model **model, sparsec_error *error) {
    if (!key) return fail(error, SPARSEC_E_INPUT, "the key that must have signed '%.500s' is NULL", path);
    return open_path(path, key, allocator, model, error);
}

void sparsec_close(sparsec_model *model) {
    if (!model) return;
    if (model->handle) dlclose(model->handle);
    if (model->code >= 0) close(model->code);
    if (model->map) munmap(model->map, model->map_size);
    sparsec_allocator memory = model->memory;
    memory.release(memory.user, model, sizeof *model);
}
