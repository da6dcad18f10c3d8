// start.c - what a cold start is made of: start ARTIFACT THREADS
//
// Prints one JSON object: milliseconds, each from the end of the one before, and the peak of memory.

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

// The time to read the file, which is in the page cache, through a buffer.
static double reading(const char *path) {
    static char buffer[1 << 20];
    double begin = now();
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0);
    while (read(fd, buffer, sizeof buffer) > 0) {
    }
    close(fd);
    return now() - begin;
}

static long peak_kilobytes(void) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[200];
    long peak = 0;
    CHECK(file);
    while (fgets(line, sizeof line, file)) sscanf(line, "VmHWM: %ld", &peak);
    fclose(file);
    return peak;
}

int main(int argc, char **argv) {
    char text[40];
    CHECK(argc == 3 || argc == 4);
    if (argc == 3) { // once more, so that the loading of the program counts
        snprintf(text, sizeof text, "%.6f", now());
        execl("/proc/self/exe", argv[0], argv[1], argv[2], text, (char *)0);
        CHECK(!"exec");
    }
    double times[6] = {atof(argv[3]), now()};
    sparsec_model *model = 0;
    sparsec_context *c = 0;
    OK(sparsec_open(argv[1], 0, &model, error));
    times[2] = now();
    OK(sparsec_context_create(model, atoi(argv[2]), &c, error));
    for (uint32_t i = 0; i < sparsec_input_count(model); i++) {
        size_t bytes = sparsec_input(model, i)->bytes;
        void *zeros = calloc(1, bytes);
        OK(sparsec_set_input(c, i, zeros, bytes, error));
        free(zeros);
    }
    times[3] = now();
    OK(sparsec_run(c, error));
    times[4] = now();
    OK(sparsec_run(c, error));
    times[5] = now();
    static const char *names[] = {"load", "open", "context", "first_run", "second_run"};
    printf("{");
    for (int i = 0; i < 5; i++) printf("\"%s\": %.2f, ", names[i], times[i + 1] - times[i]);
    long peak = peak_kilobytes();
    printf("\"reading\": %.2f, \"peak_bytes\": %ld}\n", reading(argv[1]), peak * 1024);
    sparsec_context_free(c);
    sparsec_close(model);
    return 0;
}
