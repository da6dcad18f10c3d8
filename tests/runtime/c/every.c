// every.c - every function of sparsec.h, right and wrong, on the model of plan.c
//
//     every ARTIFACT KEY OLD LARGE [FILE ...]
//
// KEY: the public key that has signed it, in 64 hexadecimal digits, or '-'.  OLD: the same model, its library
// of ABI 1.  LARGE: any other artifact.  The files must be refused.  The environment: ROUNDS is how often each
// of the 8 threads runs the model; with LIMITS the process runs out of memory and threads, as sanitizers do not
// allow.

#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#ifdef SPARSEC_NO_THREADS
#define MOST 1
#else
#define MOST 4 // threads
#endif

#define N 17
#define BYTES (N * sizeof(float))

static _Alignas(64) float x[N + 1], y[N + 1];
static _Alignas(64) int32_t order;

// What the model computes after `runs` runs on x = 1, 2, ...; the weights are all 0.5.
static int right(const float *found, int runs) {
    for (int i = 0; i < N; i++)
        if (found[i] != 0.5f * (float)runs * (float)(i + 1)) return 0;
    return 1;
}

static sparsec_context *context_of(sparsec_model *model, int threads) {
    sparsec_context *c = 0;
    OK(sparsec_context_create(model, threads, &c, error));
    OK(sparsec_bind_input(c, 0, x, BYTES, error));
    OK(sparsec_bind_input(c, 1, &order, 4, error));
    return c;
}

// Section: what a model says

static void descriptions(sparsec_model *model) {
    CHECK(!strcmp(sparsec_version(), SPARSEC_VERSION) && !strcmp(sparsec_level(model), "v2"));
    CHECK(sparsec_input_count(model) == 2 && sparsec_output_count(model) == 2 && sparsec_state_count(model) == 1);
    CHECK(!strcmp(sparsec_input(model, 1)->name, "order") && !sparsec_input(model, 2));
    CHECK(!strcmp(sparsec_output(model, 0)->name, "y") && !sparsec_output(model, 2));
    CHECK(!strcmp(sparsec_state(model, 0)->name, "past") && !sparsec_state(model, 1));
    CHECK(sparsec_snapshot_size(model) == BYTES && sparsec_step_count(model) == 4);
    CHECK(!strcmp(sparsec_step_label(model, 3), "copy") && !sparsec_step_label(model, 4));
}

// Section: opening

static void opening(const char *path) {
    sparsec_model *model = 0;
    FAILS(SPARSEC_E_ARTIFACT, "cannot open '/nowhere'", sparsec_open("/nowhere", 0, &model, error));
    FAILS(SPARSEC_E_ARTIFACT, "not a regular file", sparsec_open("/", 0, &model, error));
    FAILS(SPARSEC_E_FORMAT, "the file is empty", sparsec_open("/proc/self/maps", 0, &model, error));
    FAILS(SPARSEC_E_ARTIFACT, "cannot read the artifact", sparsec_open_fd(-1, 0, &model, error));
    FAILS(SPARSEC_E_INPUT, "aligned to 64", sparsec_open_memory((char *)x + 1, 10, 0, &model, error));
    FAILS(SPARSEC_E_INPUT, "aligned to 64", sparsec_open_memory(0, 10, 0, &model, error));
    CHECK(!model);
    CHECK(sparsec_open("/nowhere", 0, &model, 0) == SPARSEC_E_ARTIFACT); // nobody wants to know why
    sparsec_close(0);
    sparsec_context_free(0);

    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    OK(sparsec_open_fd(fd, 0, &model, error));
    descriptions(model);
    sparsec_close(model);

    off_t size = lseek(fd, 0, SEEK_END);
    void *data = aligned_alloc(64, ((size_t)size + 63) / 64 * 64);
    CHECK(data && pread(fd, data, (size_t)size, 0) == size);
    close(fd);
    OK(sparsec_open_memory(data, (size_t)size, 0, &model, error));
    descriptions(model);
    sparsec_close(model);
    free(data);
}

static void opening_signed(const char *path, const char *hexadecimal, const char *unsigned_path) {
    sparsec_model *model = 0;
    uint8_t key[32];
    FAILS(SPARSEC_E_INPUT, "is NULL", sparsec_open_signed(path, 0, 0, &model, error));
    if (*hexadecimal == '-') return;
    for (int i = 0; i < 32; i++) CHECK(sscanf(hexadecimal + 2 * i, "%2hhx", key + i) == 1);
    OK(sparsec_open_signed(path, key, 0, &model, error));
    sparsec_close(model);
    FAILS(SPARSEC_E_SIGNATURE, "is not signed", sparsec_open_signed(unsigned_path, key, 0, &model, error));
    key[5] ^= 1;
    FAILS(SPARSEC_E_SIGNATURE, "is signed by the key", sparsec_open_signed(path, key, 0, &model, error));
}

// A library from before states and allocators.
static void old_library(const char *path) {
    sparsec_model *model = 0;
    sparsec_context *c = 0;
    float room[N];
    OK(sparsec_open(path, 0, &model, error));
    CHECK(!sparsec_state_count(model) && !sparsec_snapshot_size(model) && !sparsec_state(model, 0));
    CHECK(!sparsec_context_size(model, 1));
    FAILS(SPARSEC_E_INPUT, "compile it again", sparsec_context_create_in(model, 1, x, sizeof x, &c, error));
    OK(sparsec_context_create(model, 1, &c, error));
    OK(sparsec_bind_input(c, 0, x, BYTES, error));
    OK(sparsec_bind_input(c, 1, &order, 4, error));
    OK(sparsec_run(c, error));
    CHECK(right(sparsec_output_data(c, 0), 1) && !sparsec_state_data(c, 0));
    OK(sparsec_reset(c, error));
    OK(sparsec_snapshot(c, room, 0, error));
    OK(sparsec_restore(c, room, 0, error));
    FAILS(SPARSEC_E_INPUT, "has 0 bytes, found 68", sparsec_snapshot(c, room, BYTES, error));
    FAILS(SPARSEC_E_INPUT, "has 0 bytes, found 68", sparsec_restore(c, room, BYTES, error));
    sparsec_context_free(c);
    sparsec_close(model);
}

// Section: binding and running

static void binding(sparsec_model *model) {
    sparsec_context *c = 0;
    FAILS(SPARSEC_E_INPUT, "threads must be from 1 to", sparsec_context_create(model, -1, &c, error));
    FAILS(SPARSEC_E_INPUT, "threads must be from 1 to", sparsec_context_create(model, 1 << 20, &c, error));
    FAILS(SPARSEC_E_INPUT, "the model runs on CPUs", sparsec_context_create_on(model, 0, &c, error));
    OK(sparsec_context_create(model, 1, &c, error));
    FAILS(SPARSEC_E_INPUT, "input 'x' was never given", sparsec_run(c, error));
    FAILS(SPARSEC_E_INPUT, "input 'x' takes 68 bytes, found 3", sparsec_bind_input(c, 0, x, 3, error));
    FAILS(SPARSEC_E_INPUT, "input 9: the model has 2", sparsec_set_input(c, 9, x, BYTES, error));
    FAILS(SPARSEC_E_INPUT, "must not be NULL", sparsec_bind_input(c, 0, 0, BYTES, error));
    FAILS(SPARSEC_E_INPUT, "output 'y' takes 68 bytes, found 4", sparsec_bind_output(c, 0, y, 4, error));
    FAILS(SPARSEC_E_INPUT, "output 2: the model has 2", sparsec_bind_output(c, 2, y, 4, error));
    CHECK(!sparsec_output_data(c, 2) && !sparsec_state_data(c, 1));
    OK(sparsec_set_input(c, 0, x, BYTES, error));
    OK(sparsec_set_input(c, 1, &order, 4, error));
    OK(sparsec_run(c, error));
    CHECK(right(sparsec_output_data(c, 0), 1) && *(const float *)sparsec_output_data(c, 1) == 76.5f);

    OK(sparsec_bind_output(c, 0, y, BYTES, error)); // in place
    OK(sparsec_run(c, error));
    CHECK(sparsec_output_data(c, 0) == y && right(y, 2));
    OK(sparsec_bind_output(c, 0, y + 1, BYTES, error)); // not aligned, and so copied
    memmove(x + 1, x, BYTES);
    OK(sparsec_bind_input(c, 0, x + 1, BYTES, error));
    double seconds[4] = {-1, -1, -1, -1};
    OK(sparsec_profile(c, seconds, error));
    memmove(x, x + 1, BYTES);
    CHECK(right(y + 1, 3) && seconds[0] >= 0 && seconds[1] >= 0 && seconds[2] >= 0 && seconds[3] >= 0);
    OK(sparsec_bind_output(c, 0, 0, BYTES, error));
    OK(sparsec_bind_input(c, 0, x, BYTES, error));
    OK(sparsec_run(c, error));
    CHECK(sparsec_output_data(c, 0) != y && right(sparsec_output_data(c, 0), 4));
    sparsec_context_free(c);
}

static void kernels_that_fail(sparsec_model *model, int threads) {
    sparsec_context *c = context_of(model, threads);
    static const char *words[] = {"",
                                  "step 'total' failed: ValueError: an index is out of range",
                                  "asked for 1048576 bytes of workspace with 0 of 128 planned",
                                  "the kernel returned an error without a reason",
                                  "without a reason",
                                  "bytes of workspace with 0 of 128 planned",
                                  "Error: xxxxxx"};
    for (order = 1; order < 7; order++) FAILS(SPARSEC_E_RUN, words[order], sparsec_run(c, error));
    order = 0;
    OK(sparsec_run(c, error)); // no failure has changed the state
    CHECK(right(sparsec_output_data(c, 0), 1));
    sparsec_context_free(c);
}

// Section: state

static void state(sparsec_model *model) {
    sparsec_context *a = context_of(model, MOST), *b = context_of(model, 1);
    float kept[N], zeros[N] = {0};
    for (int i = 1; i <= 3; i++) OK(sparsec_run(a, error));
    const float *past = sparsec_state_data(a, 0);
    CHECK(past[0] == 3 && past[16] == 51);
    FAILS(SPARSEC_E_INPUT, "has 68 bytes, found 4", sparsec_snapshot(a, kept, 4, error));
    FAILS(SPARSEC_E_INPUT, "has 68 bytes, found 4", sparsec_restore(a, kept, 4, error));
    FAILS(SPARSEC_E_INPUT, "must not be NULL", sparsec_restore(a, 0, BYTES, error));
    OK(sparsec_snapshot(a, kept, BYTES, error));
    CHECK(!memcmp(kept, past, BYTES));
    OK(sparsec_restore(b, kept, BYTES, error));
    OK(sparsec_run(a, error));
    OK(sparsec_run(b, error));
    CHECK(right(sparsec_output_data(a, 0), 4) && right(sparsec_output_data(b, 0), 4));
    OK(sparsec_reset(a, error));
    CHECK(!memcmp(sparsec_state_data(a, 0), zeros, BYTES));
    OK(sparsec_run(a, error));
    CHECK(right(sparsec_output_data(a, 0), 1));
    sparsec_context_free(a);
    sparsec_context_free(b);
}

// Section: memory

typedef struct hooks {
    size_t live, calls, fail_at; // fail_at: the call, counted from 1, that gets nothing
} hooks;

static void *hook_allocate(void *user, size_t bytes, size_t alignment) {
    hooks *h = user;
    if (++h->calls == h->fail_at) return 0;
    void *p = aligned_alloc(alignment < 64 ? 64 : alignment, (bytes + 63) / 64 * 64);
    CHECK(p);
    h->live += bytes;
    return memset(p, 0xa5, bytes); // nobody may count on zeros
}

static void hook_release(void *user, void *memory, size_t bytes) {
    ((hooks *)user)->live -= bytes;
    free(memory);
}

// Opens, runs and closes with the k-th allocation failing, for every k.
static void allocation_failures(const char *path) {
    for (size_t k = 1;; k++) {
        hooks h = {.fail_at = k};
        sparsec_allocator allocator = {hook_allocate, hook_release, &h};
        sparsec_model *model = 0;
        sparsec_context *c = 0;
        sparsec_error error = {SPARSEC_OK, ""};
        sparsec_status rc = sparsec_open(path, &allocator, &model, &error);
        if (!rc) rc = sparsec_context_create(model, MOST, &c, &error);
        if (!rc) {
            size_t before = h.calls;
            OK(sparsec_bind_input(c, 0, x, BYTES, error));
            OK(sparsec_bind_input(c, 1, &order, 4, error));
            for (int i = 1; i <= 100; i++) OK(sparsec_run(c, error));
            CHECK(right(sparsec_output_data(c, 0), 100) && h.calls == before);
        }
        CHECK(!rc == (h.calls < k));
        if (rc) CHECK(rc == SPARSEC_E_RUN && strstr(error.message, "no memory for a"));
        sparsec_context_free(c);
        sparsec_close(model);
        CHECK(h.live == 0);
        if (!rc) {
            CHECK(k == 3); // one block for the model, one for the context
            return;
        }
    }
}

static void callers_memory(sparsec_model *model) {
    CHECK(!sparsec_context_size(model, -1) && !sparsec_context_size(model, 1 << 20));
    CHECK(sparsec_context_size(model, 0) >= sparsec_context_size(model, 1));
    for (int threads = 1; threads <= MOST; threads += 3) {
        size_t size = sparsec_context_size(model, threads);
        char *memory = aligned_alloc(64, size + 64);
        sparsec_context *c = 0;
        CHECK(memory && size);
        memset(memory, 0xa5, size + 64);
        FAILS(SPARSEC_E_INPUT, "aligned to 64", sparsec_context_create_in(model, threads, memory + 1, size, &c, error));
        FAILS(SPARSEC_E_INPUT, "aligned to 64", sparsec_context_create_in(model, threads, 0, size, &c, error));
        FAILS(SPARSEC_E_RUN, "no memory for a context",
              sparsec_context_create_in(model, threads, memory, size - 1, &c, error));
        OK(sparsec_context_create_in(model, threads, memory, size, &c, error));
        CHECK((char *)c == memory && sparsec_threads(c) == threads);
        OK(sparsec_bind_input(c, 0, x, BYTES, error));
        OK(sparsec_bind_input(c, 1, &order, 4, error));
        OK(sparsec_run(c, error));
        CHECK(right(sparsec_output_data(c, 0), 1));
        sparsec_context_free(c);
        for (int i = 0; i < 64; i++) CHECK(memory[size + (size_t)i] == (char)0xa5);
        free(memory);
    }
}

// Section: threads

#define CALLERS 8

static int rounds = 200;

// Every result is bit by bit what it is in a single thread: all numbers up to `rounds` are exact.
static void *caller(void *model) {
    sparsec_context *c = context_of(model, MOST);
    for (int i = 1; i <= rounds; i++) {
        OK(sparsec_run(c, error));
        CHECK(right(sparsec_output_data(c, 0), i));
    }
    sparsec_context_free(c);
    return 0;
}

static void many_threads(sparsec_model *model) {
    pthread_t threads[CALLERS];
    for (int i = 0; i < CALLERS; i++) CHECK(!pthread_create(threads + i, 0, caller, model));
    for (int i = 0; i < CALLERS; i++) pthread_join(threads[i], 0);
}

// Both use one context: each call runs it or is refused.
static void *intruder(void *context) {
    for (int i = 0; i < rounds; i++) {
        sparsec_error error;
        if (sparsec_run(context, &error)) CHECK(strstr(error.message, "at work in another thread"));
        if (sparsec_reset(context, &error)) CHECK(strstr(error.message, "at work in another thread"));
    }
    return 0;
}

static void one_context_for_two(sparsec_model *model) {
    sparsec_context *c = context_of(model, MOST);
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, intruder, c));
    intruder(c);
    pthread_join(thread, 0);
    sparsec_context_free(c);
}

static void default_threads(sparsec_model *model) {
    sparsec_context *c = 0;
    char most[] = {'0' + MOST, 0};
    setenv("SPARSEC_NUM_THREADS", most, 1);
    OK(sparsec_context_create(model, 0, &c, error));
    CHECK(sparsec_threads(c) == MOST);
    sparsec_context_free(c);
    setenv("SPARSEC_NUM_THREADS", "many", 1);
    FAILS(SPARSEC_E_INPUT, "SPARSEC_NUM_THREADS must be a number", sparsec_context_create(model, 0, &c, error));
    CHECK(!sparsec_context_size(model, 0));
    unsetenv("SPARSEC_NUM_THREADS");
    OK(sparsec_context_create(model, 0, &c, error));
    CHECK(sparsec_threads(c) >= 1);
    sparsec_context_free(c);
}

// The pool's threads stay in the parent.
static void after_fork(sparsec_model *model) {
    sparsec_context *c = context_of(model, MOST);
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        sparsec_error error;
        CHECK(sparsec_run(c, &error) == (MOST > 1 ? SPARSEC_E_RUN : SPARSEC_OK));
        if (MOST > 1) CHECK(strstr(error.message, "was made before fork"));
        sparsec_context_free(c);
        exit(0);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && !status);
    OK(sparsec_run(c, error));
    sparsec_context_free(c);
}

static void limits(sparsec_model *model) {
    sparsec_context *c = 0;
    struct rlimit before, tight;
    CHECK(!getrlimit(RLIMIT_AS, &before));
    tight = before;
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file && fscanf(file, "%lu", &pages) == 1 && !fclose(file));
    tight.rlim_cur = pages * (rlim_t)sysconf(_SC_PAGESIZE) + (64 << 20); // fits some threads' stacks, not a thousand
    CHECK(!setrlimit(RLIMIT_AS, &tight));
    if (MOST > 1)
        FAILS(SPARSEC_E_RUN, "cannot start 1023 threads", sparsec_context_create(model, 1024, &c, error));
    tight.rlim_cur = 1;
    CHECK(!setrlimit(RLIMIT_AS, &tight));
    FAILS(SPARSEC_E_RUN, "no memory for a context", sparsec_context_create(model, 1, &c, error));
    CHECK(!setrlimit(RLIMIT_AS, &before));
}

int main(int argc, char **argv) {
    CHECK(argc > 4);
    if (getenv("ROUNDS")) rounds = atoi(getenv("ROUNDS"));
    for (int i = 0; i < N; i++) x[i] = (float)(i + 1);
    sparsec_model *model = 0;
    opening(argv[1]);
    opening_signed(argv[1], argv[2], argv[4]);
    old_library(argv[3]);
    OK(sparsec_open(argv[4], 0, &model, error));
    sparsec_close(model);
    OK(sparsec_open(argv[1], 0, &model, error));
    binding(model);
    for (int threads = 1; threads <= MOST; threads++) kernels_that_fail(model, threads);
    state(model);
    allocation_failures(argv[1]);
    callers_memory(model);
    many_threads(model);
    one_context_for_two(model);
    default_threads(model);
    after_fork(model);
    if (getenv("LIMITS")) limits(model);
    sparsec_close(model);
    for (int i = 5; i < argc; i++) {
        sparsec_error error;
        model = 0;
        CHECK(sparsec_open(argv[i], 0, &model, &error) == error.kind && error.kind && *error.message && !model);
    }
    puts("ok");
    return 0;
}
