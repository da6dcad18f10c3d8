// failing.c - the k-th allocation of the whole process fails, for every k: failing ARTIFACT THREADS
//
// Also those that libc makes for itself, in dlopen, pthread_create and the like.

#include <errno.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static atomic_int left; // allocations until the one that fails; 0 and less: none does
static _Alignas(64) float x[17];
static _Alignas(64) int32_t order;

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
static int fails_now(void) {
    if (atomic_load(&left) <= 0 || atomic_fetch_sub(&left, 1) != 1) return 0;
    errno = ENOMEM;
    return 1;
}
void *malloc(size_t n) { return fails_now() ? 0 : __libc_malloc(n); }
void *calloc(size_t m, size_t n) { return fails_now() ? 0 : __libc_calloc(m, n); }
void *realloc(void *p, size_t n) { return fails_now() ? 0 : __libc_realloc(p, n); }

enum { DONE = 10, REFUSED, SILENT, NONE_FAILED }; // exit codes

static int attempt(const char *path, int threads) {
    sparsec_model *model = 0;
    sparsec_context *c = 0;
    sparsec_error error = {SPARSEC_OK, ""};
    sparsec_status rc = sparsec_open(path, 0, &model, &error);
    if (!rc) rc = sparsec_context_create(model, threads, &c, &error);
    if (!rc) rc = sparsec_bind_input(c, 0, x, sizeof x, &error);
    if (!rc) rc = sparsec_bind_input(c, 1, &order, sizeof order, &error);
    if (!rc) rc = sparsec_run(c, &error);
    sparsec_context_free(c);
    sparsec_close(model);
    if (!rc) return DONE;
    return rc == error.kind && *error.message ? REFUSED : SILENT;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    for (int k = 1;; k++) {
        pid_t child = fork(); // each time from the same state
        CHECK(child >= 0);
        if (!child) {
            atomic_store(&left, k);
            int code = attempt(argv[1], atoi(argv[2]));
            _exit(code == DONE && atomic_exchange(&left, 0) > 0 ? NONE_FAILED : code);
        }
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
        int code = WEXITSTATUS(status); // libc's own, too, where it gives up
        CHECK(code == DONE || code == REFUSED || code == NONE_FAILED);
        if (code == NONE_FAILED) { // there is no k-th allocation
            printf("%d\n", k - 1);
            return 0;
        }
    }
}
