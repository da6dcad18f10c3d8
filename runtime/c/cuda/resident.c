// resident.c - bringing weights and kernels to a GPU, once for all contexts of the model

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "resident.h"

#define plan (&cuda_the_plan)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static resident *residents; // one per GPU in use

// Section: refusals

// "sm_80, sm_90 and PTX for compute_90"
static void list_architectures(char *text, size_t size) {
    size_t used = 0;
    text[0] = 0;
    for (uint32_t i = 0; i < plan->architecture_count && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%ssm_%u", i ? ", " : "", plan->architectures[i]);
    if (plan->ptx && used < size) snprintf(text + used, size - used, " and PTX for compute_%u", plan->ptx);
}

// Whether the fat binary has code for a GPU of this compute capability: a cubin of the same major and no later
// minor version, or PTX of an earlier one.  (CUDA C++ Programming Guide, "Binary Compatibility".)
static bool has_code(unsigned capability) {
    for (uint32_t i = 0; i < plan->architecture_count; i++)
        if (plan->architectures[i] / 10 == capability / 10 && plan->architectures[i] <= capability) return true;
    return plan->ptx && plan->ptx <= capability;
}

static sparsec_status check_architecture(const cuda_driver *cu, int device, int handle, sparsec_error *error) {
    int major = 0, minor = 0;
    char name[100] = "?", held[300];
    cu->device_name(name, sizeof name, handle);
    cu_result rc = cu->device_attribute(&major, CU_COMPUTE_MAJOR, handle);
    if (!rc) rc = cu->device_attribute(&minor, CU_COMPUTE_MINOR, handle);
    if (rc) return fail(error, SPARSEC_E_TARGET, "GPU %d does not say what it is: %s", device, cuda_name(rc));
    if (has_code((unsigned)(10 * major + minor))) return SPARSEC_OK;
    list_architectures(held, sizeof held);
    return fail(error, SPARSEC_E_TARGET, "the artifact's kernels are for %s; GPU %d (%s) is sm_%d%d: compile with "
                                         "--target cuda:sm_%d%d",
                held, device, name, major, minor, major, minor);
}

static sparsec_status refuse_kernels(const cuda_driver *cu, int device, cu_result rc, sparsec_error *error) {
    int version = 0;
    cu->version(&version);
    if (rc == CU_OUT_OF_MEMORY)
        return fail(error, SPARSEC_E_RUN, "GPU %d has too little memory left for the model's kernels", device);
    if (version / 1000 < (int)plan->toolkit / 1000)
        return fail(error, SPARSEC_E_TARGET,
                    "the NVIDIA driver is too old: it knows CUDA %d.%d, the artifact's kernels were made by CUDA %u.%u; "
                    "update the driver, or compile with an older CUDA toolkit",
                    version / 1000, version % 1000 / 10, plan->toolkit / 1000, plan->toolkit % 1000 / 10);
    return fail(error, SPARSEC_E_TARGET, "GPU %d cannot load the artifact's kernels: %s", device, cuda_name(rc));
}

// Section: bringing

static sparsec_status find_functions(const cuda_driver *cu, resident *r, sparsec_error *error) {
    for (uint32_t i = 0; i < plan->launch_count; i++) {
        const cuda_launch *l = plan->launches + i;
        cu_result rc = cu->function(r->functions + i, r->module, l->kernel);
        if (rc)
            return fail(error, SPARSEC_E_ARTIFACT, "kernels.fatbin has no kernel '%s' (%s): it is another model's",
                        l->kernel, cuda_name(rc));
        // More than 48 kB has to be asked for.
        if (l->shared) rc = cu->function_attribute(r->functions[i], CU_DYNAMIC_SHARED, (int)l->shared);
        if (rc)
            return fail(error, SPARSEC_E_TARGET, "GPU %d has too little shared memory for kernel '%s': %u bytes are needed",
                        r->device, l->kernel, l->shared);
    }
    return SPARSEC_OK;
}

static sparsec_status upload(const cuda_driver *cu, resident *r, sparsec_error *error) {
    uint64_t size = plan->module.weights_size;
    if (!size) return SPARSEC_OK;
    cu_result rc = cu->alloc(&r->weights, size);
    if (rc)
        return fail(error, SPARSEC_E_RUN, "GPU %d has too little memory left: %llu bytes are needed for weights (%s)",
                    r->device, (unsigned long long)size, cuda_name(rc));
    rc = cu->to_device(r->weights, r->source, size, 0);
    if (!rc) rc = cu->synchronize(0);
    if (rc) return fail(error, SPARSEC_E_RUN, "weights cannot be copied to GPU %d: %s", r->device, cuda_name(rc));
    return SPARSEC_OK;
}

static void leave(const cuda_driver *cu, resident *r, int handle) {
    cu_context none;
    if (!cu->push(r->context)) {
        if (r->weights) cu->free(r->weights);
        if (r->module) cu->unload(r->module);
        cu->pop(&none);
    }
    cu->release(handle);
    free(r);
}

static sparsec_status bring(const cuda_driver *cu, resident *r, int handle, const void *kernels,
                            sparsec_error *error) {
    cu_context none;
    cu_result rc = cu->push(r->context);
    if (rc) return fail(error, SPARSEC_E_RUN, "GPU %d cannot be used: %s", r->device, cuda_name(rc));
    sparsec_status status = check_architecture(cu, r->device, handle, error);
    if (!status && (rc = cu->load(&r->module, kernels))) status = refuse_kernels(cu, r->device, rc, error);
    if (!status) status = find_functions(cu, r, error);
    if (!status) status = upload(cu, r, error);
    cu->pop(&none);
    return status;
}

static sparsec_status resident_create(const cuda_driver *cu, const void *weights, const void *kernels, int device,
                                      resident **out, sparsec_error *error) {
    int count = 0, handle = 0;
    cu->device_count(&count);
    if (device < 0 || device >= count)
        return fail(error, SPARSEC_E_INPUT, "there is no GPU %d: this machine has %d, counted from 0", device, count);
    resident *r = calloc(1, sizeof *r + plan->launch_count * sizeof *r->functions);
    if (!r) return fail(error, SPARSEC_E_RUN, "no memory for a model");
    r->device = device;
    r->source = weights;
    cu_result rc = cu->device(&handle, device);
    if (!rc) rc = cu->retain(&r->context, handle);
    if (rc) {
        free(r);
        return fail(error, SPARSEC_E_RUN, "GPU %d cannot be used: %s", device, cuda_name(rc));
    }
    sparsec_status status = bring(cu, r, handle, kernels, error);
    if (status)
        leave(cu, r, handle);
    else
        *out = r;
    return status;
}

sparsec_status resident_take(const cuda_driver *cu, const void *weights, const void *kernels, int device,
                             resident **out, sparsec_error *error) {
    sparsec_status status = SPARSEC_OK;
    pthread_mutex_lock(&lock);
    resident *r = residents;
    while (r && (r->device != device || r->source != weights)) r = r->next;
    if (!r && !(status = resident_create(cu, weights, kernels, device, &r, error))) {
        r->next = residents;
        residents = r;
    }
    if (!status) r->users++;
    pthread_mutex_unlock(&lock);
    *out = r;
    return status;
}

void resident_give(const cuda_driver *cu, resident *r) {
    pthread_mutex_lock(&lock);
    if (!--r->users) {
        int handle = 0;
        resident **at = &residents;
        while (*at != r) at = &(*at)->next;
        *at = r->next;
        cu->device(&handle, r->device);
        leave(cu, r, handle);
    }
    pthread_mutex_unlock(&lock);
}
