// driver.c - opening libcuda.so.1, once for the process

#include <dlfcn.h>
#include <pthread.h>

#include "driver.h"

static cuda_driver driver;
static sparsec_error refusal; // of the one attempt; kind is SPARSEC_OK where it went well

const char *cuda_name(cu_result result) {
    const char *name = 0;
    return driver.error_name && !driver.error_name(result, &name) && name ? name : "an unknown error";
}

static void start(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fail(&refusal, SPARSEC_E_TARGET,
             "no NVIDIA driver on this machine (%s); install it, or compile for a CPU with --target native", dlerror());
        return;
    }
#define CU_FIND(field, symbol, args)                                                                          \
    if (!(*(void **)&driver.field = dlsym(library, symbol))) {                                                \
        fail(&refusal, SPARSEC_E_TARGET, "the NVIDIA driver is too old: it has no %s; update it", symbol);    \
        return;                                                                                               \
    }
    CU_FUNCTIONS(CU_FIND)
#undef CU_FIND
    cu_result rc = driver.init(0);
    int count = 0;
    if (!rc) rc = driver.device_count(&count);
    if (rc == CU_NO_DEVICE || (!rc && !count))
        fail(&refusal, SPARSEC_E_TARGET,
             "the NVIDIA driver finds no GPU on this machine; compile for a CPU with --target native");
    else if (rc)
        fail(&refusal, SPARSEC_E_TARGET, "the NVIDIA driver does not start: %s", cuda_name(rc));
}

const cuda_driver *cuda_open(sparsec_error *error) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start);
    if (!refusal.kind) return &driver;
    fail(error, refusal.kind, "%s", refusal.message);
    return 0;
}
