// open.c - models for C users: check an artifact, load its library from sealed memory, pass calls on

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../module.h"
#include "lib.h"

struct sparsec_model {
    const sparsec_module *module;
    const void *weights;
    void *map; // the whole file; NULL for a model in the caller's memory
    size_t map_size;
    void *handle;
    int code; // the library's memory; open as long as it is loaded, see load_code
};

const char *sparsec_version(void) { return SPARSEC_VERSION; }

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
    sparsec_status rc = manifest_check_hash(m, m->code->name, (span){copy, code.size}, error);
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
    if (model->module->abi != SPARSEC_MODULE_ABI)
        return fail(error, SPARSEC_E_ARTIFACT, "the artifact's library has ABI %u, this runtime speaks ABI %d",
                    model->module->abi, SPARSEC_MODULE_ABI);
    if (model->module->weights_size != (m->weights ? m->weights->size : 0))
        return fail(error, SPARSEC_E_ARTIFACT, "the artifact's library and its manifest describe different models");
    return SPARSEC_OK;
}

// The format's order of checks: structure and sizes, format number, target, hashes; then the code.
static sparsec_status check_and_load(sparsec_model *model, span file, sparsec_error *error) {
    archive a;
    manifest m;
    sparsec_status rc = zip_open(file, &a, error);
    if (!rc) rc = manifest_read(&a, &m, error);
    for (int i = 1; !rc && i < a.count; i++)
        if (a.members + i != m.code) rc = manifest_check_hash(&m, a.members[i].name, zip_data(&a, a.members + i), error);
    if (rc) return rc;
    model->weights = m.weights ? zip_data(&a, m.weights).data : 0;
    return load_code(model, &m, zip_data(&a, m.code), error);
}

static sparsec_status open_span(span file, void *map, sparsec_model **out, sparsec_error *error) {
    sparsec_model *model = calloc(1, sizeof *model);
    if (!model) {
        if (map) munmap(map, file.size);
        return fail(error, SPARSEC_E_RUN, "no memory for a model");
    }
    *model = (sparsec_model){.map = map, .map_size = file.size, .code = -1};
    sparsec_status rc = check_and_load(model, file, error);
    if (!rc)
        *out = model;
    else
        sparsec_close(model);
    return rc;
}

sparsec_status sparsec_open_memory(const void *data, size_t size, sparsec_model **model, sparsec_error *error) {
    if (!data || (uintptr_t)data % 64)
        return fail(error, SPARSEC_E_INPUT, "an artifact in memory must be aligned to 64 bytes");
    return open_span((span){data, size}, 0, model, error);
}

sparsec_status sparsec_open_fd(int fd, sparsec_model **model, sparsec_error *error) {
    struct stat status;
    if (fstat(fd, &status)) return fail(error, SPARSEC_E_ARTIFACT, "cannot read the artifact: %s", strerror(errno));
    if (!S_ISREG(status.st_mode)) return fail(error, SPARSEC_E_ARTIFACT, "the artifact is not a regular file");
    size_t size = (size_t)status.st_size;
    if (!size) return fail(error, SPARSEC_E_FORMAT, "not a sparsec artifact: the file is empty");
    void *map = mmap(0, size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) return fail(error, SPARSEC_E_ARTIFACT, "cannot map the artifact: %s", strerror(errno));
    return open_span((span){map, size}, map, model, error);
}

sparsec_status sparsec_open(const char *path, sparsec_model **model, sparsec_error *error) {
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fail(error, SPARSEC_E_ARTIFACT, "cannot open '%.500s': %s", path, strerror(errno));
    sparsec_status rc = sparsec_open_fd(fd, model, error);
    close(fd);
    return rc;
}

void sparsec_close(sparsec_model *model) {
    if (!model) return;
    if (model->handle) dlclose(model->handle);
    if (model->code >= 0) close(model->code);
    if (model->map) munmap(model->map, model->map_size);
    free(model);
}

// Section: calls that the library answers

uint32_t sparsec_input_count(const sparsec_model *m) { return m->module->input_count; }
uint32_t sparsec_output_count(const sparsec_model *m) { return m->module->output_count; }
uint32_t sparsec_step_count(const sparsec_model *m) { return m->module->step_count; }
const char *sparsec_step_label(const sparsec_model *m, uint32_t step) { return m->module->label(step); }
const char *sparsec_level(const sparsec_model *m) { return m->module->level; }

const sparsec_tensor *sparsec_input(const sparsec_model *m, uint32_t index) {
    return index < m->module->input_count ? m->module->inputs + index : 0;
}

const sparsec_tensor *sparsec_output(const sparsec_model *m, uint32_t index) {
    return index < m->module->output_count ? m->module->outputs + index : 0;
}

sparsec_status sparsec_context_create(sparsec_model *m, int threads, sparsec_context **context, sparsec_error *error) {
    return m->module->create(m->weights, threads, context, error);
}

void sparsec_context_free(sparsec_context *c) {
    if (c) c->module->destroy(c);
}

int sparsec_threads(const sparsec_context *c) { return c->module->threads(c); }

sparsec_status sparsec_set_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes,
                                 sparsec_error *error) {
    return c->module->set_input(c, index, data, bytes, error);
}

sparsec_status sparsec_bind_input(sparsec_context *c, uint32_t index, const void *data, size_t bytes,
                                  sparsec_error *error) {
    return c->module->bind_input(c, index, data, bytes, error);
}

sparsec_status sparsec_bind_output(sparsec_context *c, uint32_t index, void *data, size_t bytes,
                                   sparsec_error *error) {
    return c->module->bind_output(c, index, data, bytes, error);
}

const void *sparsec_output_data(const sparsec_context *c, uint32_t index) { return c->module->output_data(c, index); }

sparsec_status sparsec_run(sparsec_context *c, sparsec_error *error) { return c->module->run(c, 0, 0, 0, error); }

sparsec_status sparsec_profile(sparsec_context *c, double *seconds, sparsec_error *error) {
    return c->module->run(c, 0, 0, seconds, error);
}
