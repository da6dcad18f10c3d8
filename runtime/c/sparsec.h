// sparsec.h - run a compiled model (model.sparsec) from C; sparsec.hpp wraps it for C++
//
// Needs libc and POSIX threads, nothing else.  Link with -lsparsec -ldl -lpthread.  Built with
// -DSPARSEC_NO_THREADS it starts no thread, neither to check an artifact nor to run a model.
//
//     sparsec_error error;
//     sparsec_model *model;
//     sparsec_context *context;
//     if (sparsec_open("model.sparsec", NULL, &model, &error) ||
//         sparsec_context_create(model, 0, &context, &error) ||
//         sparsec_bind_input(context, 0, pixels, sizeof pixels, &error) ||
//         sparsec_run(context, &error))
//         return fprintf(stderr, "%s\n", error.message), 1;
//     const float *scores = sparsec_output_data(context, 0);

#ifndef SPARSEC_H
#define SPARSEC_H

#include <stddef.h>
#include <stdint.h>

// Section: version

#define SPARSEC_VERSION "0.1.0"
#define SPARSEC_FORMAT 1 // the artifact format that this library reads

#ifdef __cplusplus
extern "C" {
#endif

#if defined(SPARSEC_BUILD)
#define SPARSEC_API __attribute__((visibility("default")))
#else
#define SPARSEC_API
#endif

// The version of the library that is linked, which may be newer than the header's.
SPARSEC_API const char *sparsec_version(void);

// Section: errors
//
// Every function that can fail returns SPARSEC_OK (0) or the kind of the failure, and, unless
// `error` is NULL, fills *error with the kind and a message of one line.  On success *error is left
// alone.  There is no other error state.

typedef enum sparsec_status {
    SPARSEC_OK = 0,
    SPARSEC_E_ARTIFACT = 1, // the bytes are damaged, cut off or cannot be read
    SPARSEC_E_FORMAT = 2,   // not an artifact, or one of a newer format
    SPARSEC_E_TARGET = 3,   // built for another architecture, or the CPU lacks features
    SPARSEC_E_INPUT = 4,    // a wrong index, size or option, or an input that was never given
    SPARSEC_E_RUN = 5,      // a kernel refused, or memory or threads ran out
    SPARSEC_E_SIGNATURE = 6, // a signature is required, and there is none, another key's or a wrong one
} sparsec_status;

typedef struct sparsec_error {
    sparsec_status kind;
    char message[1020]; // UTF-8, ends with a zero byte, no newline
} sparsec_error;

// Section: memory
//
// Where a model and its contexts get their memory.  Calls come from the thread that opens, closes,
// creates or frees, never from a run.  Not asked are the system for what it does itself: mappings of
// the artifact, the dynamic linker, the stacks of threads.

typedef struct sparsec_allocator {
    // At least `bytes` bytes at a multiple of `alignment`, a power of two, with any content; NULL if
    // there are none, which is reported as SPARSEC_E_RUN.
    void *(*allocate)(void *user, size_t bytes, size_t alignment);
    // Takes back what `allocate` gave for the same number of bytes.
    void (*release)(void *user, void *memory, size_t bytes);
    void *user; // handed to both
} sparsec_allocator;

// Section: models
//
// A model is read-only once it is open: any number of threads may use it at the same time.

typedef struct sparsec_model sparsec_model;

// Opens an artifact.  Nothing of it is executed before its structure, its format number, its
// target and the SHA-256 of every member have been checked, in this order, and what is executed is
// the very bytes that were hashed.  Weights are mapped, not read: processes share them.  So the
// file must not be changed in place while the model is open; replacing it by rename is safe.
//
// Large artifacts are hashed by as many threads as the process has CPUs, at most 8, which end before
// the function returns.  `allocator` is copied; it serves the model and its contexts.  NULL: the system.
//
// SPARSEC_E_ARTIFACT, _E_FORMAT, _E_TARGET: as above.  SPARSEC_E_RUN: no memory, or the system does
// not load the code.  *model is written on success alone.
SPARSEC_API sparsec_status sparsec_open(const char *path, const sparsec_allocator *allocator,
                                        sparsec_model **model, sparsec_error *error);

// The same for an artifact that must be signed: `key` is an Ed25519 public key of 32 bytes.  The signature is
// checked after the structure.  SPARSEC_E_SIGNATURE: there is none, it is another key's, or it is wrong.
SPARSEC_API sparsec_status sparsec_open_signed(const char *path, const uint8_t *key,
                                               const sparsec_allocator *allocator, sparsec_model **model,
                                               sparsec_error *error);

// As sparsec_open, for an open file descriptor of a regular file.  The descriptor is not kept and not
// closed, its position does not matter.
SPARSEC_API sparsec_status sparsec_open_fd(int fd, const sparsec_allocator *allocator, sparsec_model **model,
                                           sparsec_error *error);

// The same for an artifact in memory.  `data` must be aligned to 64 bytes (else SPARSEC_E_INPUT) and
// must stay there, unchanged, until sparsec_close.
SPARSEC_API sparsec_status sparsec_open_memory(const void *data, size_t size, const sparsec_allocator *allocator,
                                               sparsec_model **model, sparsec_error *error);

// The model that is linked with the program, which `sparsec export --static` makes a library of: it is always
// open.  That library has the functions that open and close no more, starts no thread, and asks no system for
// memory: contexts come from sparsec_context_create_in alone, and one at a time runs.
SPARSEC_API sparsec_model *sparsec_linked_model(void);

// Frees the model; its contexts must have been freed before.  NULL is allowed.
SPARSEC_API void sparsec_close(sparsec_model *model);

// Section: what a model takes and gives

typedef struct sparsec_tensor {
    const char *name;     // as in the source model
    const char *dtype;    // NumPy's name: "float32", "int64", "bool", ...
    int32_t ndim;         // number of axes; 0 for a scalar
    const int64_t *shape; // ndim extents in elements; data are dense and row-major
    uint64_t bytes;       // size of the data
} sparsec_tensor;

SPARSEC_API uint32_t sparsec_input_count(const sparsec_model *model);
SPARSEC_API uint32_t sparsec_output_count(const sparsec_model *model);

// The description of an input or output, owned by the model; NULL if `index` is out of range.
SPARSEC_API const sparsec_tensor *sparsec_input(const sparsec_model *model, uint32_t index);
SPARSEC_API const sparsec_tensor *sparsec_output(const sparsec_model *model, uint32_t index);

// The CPU level of the library that was chosen, for example "v3".
SPARSEC_API const char *sparsec_level(const sparsec_model *model);

// Section: contexts
//
// A context holds the memory of one inference: create one per thread that runs the model.  One
// context must not be used by two threads at once; sparsec_run notices and refuses.

typedef struct sparsec_context sparsec_context;

// Allocates everything that runs will need.  `threads` is the number of threads that work on one
// inference, the caller's included: 1 for no further threads, 0 for the value of the environment
// variable SPARSEC_NUM_THREADS or, without one, the number of CPUs that the affinity mask and the
// cgroup's CPU quota leave to the process.
//
// SPARSEC_E_INPUT: not a number from 1 to 1024 (to 1 in a build without threads), here or in the variable.
// SPARSEC_E_RUN: no memory, or no more threads.
SPARSEC_API sparsec_status sparsec_context_create(sparsec_model *model, int threads, sparsec_context **context,
                                                  sparsec_error *error);

// The same on GPU number `device`, counted from 0, for a model that is made for GPUs; sparsec_context_create
// takes the first.  Such a context has a stream of its own, and sparsec_run ends when the GPU is done.  Inputs
// and outputs may be bound to the host's memory, or to memory of that GPU, which is used in place where it is
// aligned to 16 bytes; who writes there must be done before sparsec_run.
SPARSEC_API sparsec_status sparsec_context_create_on(sparsec_model *model, int device, sparsec_context **context,
                                                     sparsec_error *error);

// The bytes that such a context needs, all in one piece: tensors, the workspace of its threads, its own
// copies of inputs and outputs.  0 if `threads` is no allowed number, or the artifact was compiled before
// this function came.
SPARSEC_API uint64_t sparsec_context_size(const sparsec_model *model, int threads);

// The same in the caller's memory, which must be aligned to 64 bytes, have at least as many bytes as
// sparsec_context_size says, and stay until the context is freed.  Its content does not matter.  Too few
// bytes are SPARSEC_E_RUN, another alignment SPARSEC_E_INPUT.
SPARSEC_API sparsec_status sparsec_context_create_in(sparsec_model *model, int threads, void *memory, size_t bytes,
                                                     sparsec_context **context, sparsec_error *error);

// Ends the context's threads and frees its memory, unless that is the caller's.  NULL is allowed.
SPARSEC_API void sparsec_context_free(sparsec_context *context);

// The number of threads that work on one inference.
SPARSEC_API int sparsec_threads(const sparsec_context *context);

// The three functions that follow want the exact size of the input or output in bytes: another size, an index
// that is out of range, and NULL for an input are SPARSEC_E_INPUT, and nothing is changed.  They must not be
// called while the context runs.

// Copies the input into the context.
SPARSEC_API sparsec_status sparsec_set_input(sparsec_context *context, uint32_t index, const void *data,
                                             size_t bytes, sparsec_error *error);

// Makes every later run read the input from `data` itself.  Data aligned to 64 bytes are used in place, a
// MiB or more from 16 bytes on; others are copied at the start of each run.
SPARSEC_API sparsec_status sparsec_bind_input(sparsec_context *context, uint32_t index, const void *data,
                                              size_t bytes, sparsec_error *error);

// Makes every later run write the output to `data`: in place if aligned to 64 bytes, else by a copy
// at the end of the run.  NULL returns to the context's own memory.  The memory may overlap neither
// an input nor another output.
SPARSEC_API sparsec_status sparsec_bind_output(sparsec_context *context, uint32_t index, void *data, size_t bytes,
                                               sparsec_error *error);

// Where the last run put the output: the bound memory or the context's own, which the next run
// overwrites.  NULL if `index` is out of range.
SPARSEC_API const void *sparsec_output_data(const sparsec_context *context, uint32_t index);

// One inference.  Allocates nothing; but where the artifact's compiler had no TLS descriptors, libc makes
// a slot for a thread that runs the model for the first time and has created no context.  The calling
// thread's floating-point state (rounding mode, denormals, exception flags) has no influence and is the
// same afterwards.  After a failure the outputs are undefined, states are as before, and the context can
// be used again.
//
// SPARSEC_E_INPUT: an input was never given.  SPARSEC_E_RUN: a kernel refused (a wrong index, say), the
// context is at work in another thread, or was made before a fork.
SPARSEC_API sparsec_status sparsec_run(sparsec_context *context, sparsec_error *error);

// Section: state
//
// A model compiled with --state keeps recurrent state, such as the cells of an LSTM or a cache of keys
// and values, in its contexts: what a run computes for a state, the next run reads, without a copy.
// States are neither inputs nor outputs.  A new context begins with zeros.  While a run is going on in
// another thread the functions that change or copy states refuse (SPARSEC_E_RUN).

SPARSEC_API uint32_t sparsec_state_count(const sparsec_model *model);

// The description of a state, named as the input that it was; NULL if `index` is out of range.
SPARSEC_API const sparsec_tensor *sparsec_state(const sparsec_model *model, uint32_t index);

// The value that the next run will read; it moves with each run.  NULL if `index` is out of range.
// Of a model on a GPU this is an address in the GPU's memory.
SPARSEC_API const void *sparsec_state_data(const sparsec_context *context, uint32_t index);

// Makes every state zero.  Restoring a snapshot is the way to begin with anything else.
SPARSEC_API sparsec_status sparsec_reset(sparsec_context *context, sparsec_error *error);

// The bytes of a snapshot: all states in their order, one right after the other.
SPARSEC_API uint64_t sparsec_snapshot_size(const sparsec_model *model);

// Copies all states out of a context, or into one of the same model, this or another.  `bytes` must be
// the snapshot's size, else SPARSEC_E_INPUT.
SPARSEC_API sparsec_status sparsec_snapshot(sparsec_context *context, void *data, size_t bytes, sparsec_error *error);
SPARSEC_API sparsec_status sparsec_restore(sparsec_context *context, const void *data, size_t bytes,
                                           sparsec_error *error);

// Section: profile

// The number of steps of the plan, and the ONNX nodes that a step covers (NULL if out of range).
SPARSEC_API uint32_t sparsec_step_count(const sparsec_model *model);
SPARSEC_API const char *sparsec_step_label(const sparsec_model *model, uint32_t step);

// One inference that stores the wall-clock seconds of each step in seconds[0 .. step count).
SPARSEC_API sparsec_status sparsec_profile(sparsec_context *context, double *seconds, sparsec_error *error);

#ifdef __cplusplus
}
#endif

#endif
