// driver.h - the part of the CUDA driver API that models need, opened when the first context is made
//
// Nothing is linked: libcuda.so.1 comes with the NVIDIA driver.  Signatures and numbers are those of cuda.h, which
// keeps them for ever; a changed function gets a new name (_v2).

#ifndef SPARSEC_CUDA_DRIVER_H
#define SPARSEC_CUDA_DRIVER_H

#include "../error.h"

typedef int cu_result;
typedef uint64_t cu_address; // of device memory
typedef struct cu_context_st *cu_context;
typedef struct cu_module_st *cu_module;
typedef struct cu_function_st *cu_function;
typedef struct cu_stream_st *cu_stream;
typedef struct cu_event_st *cu_event;
typedef struct cu_graph_st *cu_graph;
typedef struct cu_exec_st *cu_exec;

enum {
    CU_OUT_OF_MEMORY = 2,
    CU_NO_DEVICE = 100,
    CU_NO_BINARY = 209,
    CU_COMPUTE_MAJOR = 75, // CUdevice_attribute
    CU_COMPUTE_MINOR = 76,
    CU_DYNAMIC_SHARED = 8,        // CUfunction_attribute
    CU_MEMORY_TYPE = 2,           // CUpointer_attribute
    CU_DEVICE_ORDINAL = 9,        // CUpointer_attribute
    CU_MEMORY_DEVICE = 2,         // CUmemorytype
    CU_NON_BLOCKING = 1,          // CUstream_flags
    CU_CAPTURE_THREAD_LOCAL = 1,  // CUstreamCaptureMode
};

#define CU_FUNCTIONS(F)                                                                                       \
    F(init, "cuInit", (unsigned))                                                                             \
    F(version, "cuDriverGetVersion", (int *))                                                                 \
    F(error_name, "cuGetErrorName", (cu_result, const char **))                                               \
    F(device_count, "cuDeviceGetCount", (int *))                                                              \
    F(device, "cuDeviceGet", (int *, int))                                                                    \
    F(device_name, "cuDeviceGetName", (char *, int, int))                                                     \
    F(device_attribute, "cuDeviceGetAttribute", (int *, int, int))                                            \
    F(retain, "cuDevicePrimaryCtxRetain", (cu_context *, int))                                                \
    F(release, "cuDevicePrimaryCtxRelease_v2", (int))                                                         \
    F(push, "cuCtxPushCurrent_v2", (cu_context))                                                              \
    F(pop, "cuCtxPopCurrent_v2", (cu_context *))                                                              \
    F(load, "cuModuleLoadData", (cu_module *, const void *))                                                  \
    F(unload, "cuModuleUnload", (cu_module))                                                                  \
    F(function, "cuModuleGetFunction", (cu_function *, cu_module, const char *))                              \
    F(function_attribute, "cuFuncSetAttribute", (cu_function, int, int))                                      \
    F(alloc, "cuMemAlloc_v2", (cu_address *, size_t))                                                         \
    F(free, "cuMemFree_v2", (cu_address))                                                                     \
    F(alloc_host, "cuMemAllocHost_v2", (void **, size_t))                                                     \
    F(free_host, "cuMemFreeHost", (void *))                                                                   \
    F(pointer_attribute, "cuPointerGetAttribute", (void *, int, cu_address))                                  \
    F(to_device, "cuMemcpyHtoDAsync_v2", (cu_address, const void *, size_t, cu_stream))                       \
    F(to_host, "cuMemcpyDtoHAsync_v2", (void *, cu_address, size_t, cu_stream))                               \
    F(between, "cuMemcpyDtoDAsync_v2", (cu_address, cu_address, size_t, cu_stream))                           \
    F(fill, "cuMemsetD32Async", (cu_address, unsigned, size_t, cu_stream))                                    \
    F(stream_create, "cuStreamCreate", (cu_stream *, unsigned))                                               \
    F(stream_destroy, "cuStreamDestroy_v2", (cu_stream))                                                      \
    F(synchronize, "cuStreamSynchronize", (cu_stream))                                                        \
    F(launch, "cuLaunchKernel",                                                                               \
      (cu_function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, cu_stream, void **, \
       void **))                                                                                              \
    F(capture_begin, "cuStreamBeginCapture_v2", (cu_stream, int))                                             \
    F(capture_end, "cuStreamEndCapture", (cu_stream, cu_graph *))                                             \
    F(instantiate, "cuGraphInstantiateWithFlags", (cu_exec *, cu_graph, unsigned long long))                  \
    F(graph_destroy, "cuGraphDestroy", (cu_graph))                                                            \
    F(exec_destroy, "cuGraphExecDestroy", (cu_exec))                                                          \
    F(graph_launch, "cuGraphLaunch", (cu_exec, cu_stream))                                                    \
    F(event_create, "cuEventCreate", (cu_event *, unsigned))                                                  \
    F(event_destroy, "cuEventDestroy_v2", (cu_event))                                                         \
    F(event_record, "cuEventRecord", (cu_event, cu_stream))                                                   \
    F(event_elapsed, "cuEventElapsedTime", (float *, cu_event, cu_event))

typedef struct cuda_driver {
#define CU_FIELD(field, symbol, args) cu_result(*field) args;
    CU_FUNCTIONS(CU_FIELD)
#undef CU_FIELD
} cuda_driver;

// The driver, started; NULL, with the reason, where there is none, it is too old or finds no GPU.
const cuda_driver *cuda_open(sparsec_error *error);

// The driver's name of a result, such as CUDA_ERROR_LAUNCH_FAILED.
const char *cuda_name(cu_result result);

#endif
