// linked.c - the program of one model that is linked with it: needs no file but what it is given
//
// SPARSEC_FEATURES lists the CPU features that its kernels use, as "avx2", "fma", ...

#include <unistd.h>

#include "device.h"

extern const uint8_t sparsec_sample[], sparsec_sample_end[]; // from an assembler file that includes sample.bin

int main(int count, char **args) {
    static const char *const features[] = {SPARSEC_FEATURES 0};
    for (const char *const *f = features; *f; f++) {
        if (cpu_has((span){(const uint8_t *)*f, strlen(*f)})) continue;
        say(STDERR_FILENO, "%s: this CPU lacks %s, which the model was compiled for\n", args[0], *f);
        return 1;
    }
    size_t size = (size_t)(sparsec_sample_end - sparsec_sample);
    subject s = {sparsec_linked_model(), {sparsec_sample, size}};
    return device_main(args[0], &s, args + 1, count - 1);
}
