// cycles.c - load, run and free a model many times: cycles ARTIFACT COUNT
//
// Memory, mappings and descriptors must at the end be what they were half-way.  (For the first 64 libraries glibc
// has room of its own for thread-local variables.)

#include <dirent.h>
#include <malloc.h>
#include <unistd.h>

#include "check.h"

static _Alignas(64) float x[17];
static _Alignas(64) int32_t order;

static int entries(const char *path) {
    DIR *folder = opendir(path);
    int count = 0;
    CHECK(folder);
    while (readdir(folder)) count++;
    closedir(folder);
    return count;
}

static int mappings(void) {
    FILE *file = fopen("/proc/self/maps", "r");
    int count = 0, c;
    CHECK(file);
    while ((c = getc(file)) != EOF) count += c == '\n';
    fclose(file);
    return count;
}

typedef struct usage {
    int descriptors, mappings, threads;
    size_t heap; // bytes that malloc has given and not got back
} usage;

static usage used(void) {
    usage u = {entries("/proc/self/fd"), mappings(), entries("/proc/self/task"), mallinfo2().uordblks};
    return u;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    int count = atoi(argv[2]);
    usage before = {0};
    for (int i = 0; i < count; i++) {
        sparsec_model *model = 0;
        sparsec_context *c = 0;
        OK(sparsec_open(argv[1], 0, &model, error));
        OK(sparsec_context_create(model, 1 + i % 2, &c, error));
        OK(sparsec_bind_input(c, 0, x, sizeof x, error));
        OK(sparsec_bind_input(c, 1, &order, sizeof order, error));
        OK(sparsec_run(c, error));
        sparsec_context_free(c);
        sparsec_close(model);
        if (i == count / 2) before = used();
    }
    usage after = used();
    CHECK(after.descriptors == before.descriptors && after.threads == before.threads);
    CHECK(after.mappings <= before.mappings + 2); // malloc's own may split
    CHECK(after.heap <= before.heap + 256);
    puts("ok");
    return 0;
}
