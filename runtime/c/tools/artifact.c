// artifact.c - the program that reads artifacts on a device: sparsec-device
//
//     sparsec-device MODEL.sparsec [--require-signature KEY.pub] --selftest
//     sparsec-device MODEL.sparsec [--require-signature KEY.pub] --input FILE ... --output FILE ...

#include "../lib/model.h"
#include "device.h"

#define USAGE "sparsec-device MODEL.sparsec [--require-signature KEY.pub]"

static span sample_of(const sparsec_model *model) {
    archive a;
    const member *m = zip_open((span){model->map, model->map_size}, &a, 0) ? 0 : zip_find(&a, "sample.bin");
    return m ? (span){zip_data(&a, m).data, m->size} : (span){0};
}

int main(int count, char **args) {
    uint8_t key[32];
    sparsec_error error;
    subject s = {0};
    bool key_given = count > 3 && !strcmp(args[2], "--require-signature");
    int first = key_given ? 4 : 2;
    if (count <= first) return device_main(USAGE, &s, args, 0);
    if (key_given && !read_key(args[3], key)) return complain(args[3], "not an Ed25519 public key in PEM");
    sparsec_status failed = key_given ? sparsec_open_signed(args[1], key, 0, &s.model, &error)
                                      : sparsec_open(args[1], 0, &s.model, &error);
    if (failed) return complain(args[1], error.message);
    s.sample = sample_of(s.model);
    return device_main(USAGE, &s, args + first, count - first);
}
