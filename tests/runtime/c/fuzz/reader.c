// reader.c - the artifact reader under libFuzzer: container, manifest, hashes, signature; no file is touched
//
// Random bytes never get past a checksum, so an input is what is done to a good artifact.  Its first byte
// says how the rest is meant:
//     'M'  the text of the manifest, in a container that is right
//     'P'  patches: offset (16 bits), value (8 bits)
//     'C'  as P, and the checksum of the manifest is right again
//     else the whole file
//
// With -DREPLAY it has a main of its own, which reads inputs from files.

#include <stdio.h>
#include <stdlib.h>

#include "lib/lib.h"

#define PAGE 4096u
#define LONGEST (1u << 16) // of a manifest

static uint8_t *put(uint8_t *p, uint32_t value, int bytes) {
    for (int i = 0; i < bytes; i++) *p++ = (uint8_t)(value >> 8 * i);
    return p;
}

typedef struct part {
    const char *name;
    span data;
    uint32_t header, offset;
} part;

static uint8_t *put_fields(uint8_t *p, const part *m) {
    static const uint32_t fixed[] = {10, 0, 0, 0, 0x21};
    for (int i = 0; i < 5; i++) p = put(p, fixed[i], 2);
    p = put(p, crc32_of(m->data), 4);
    return put(put(put(p, (uint32_t)m->data.size, 4), (uint32_t)m->data.size, 4), (uint32_t)strlen(m->name), 2);
}

// An artifact of these members in `file`, which is large enough; its size.
static size_t assemble(uint8_t *file, part *members, int count) {
    uint8_t *p = file;
    for (int i = 0; i < count; i++) {
        part *m = members + i;
        m->header = (uint32_t)(p - file);
        uint32_t start = m->header + 30 + (uint32_t)strlen(m->name);
        m->offset = (start + 6 + PAGE - 1) / PAGE * PAGE;
        memcpy(p, "PK\3\4", 4);
        p = put(put_fields(p + 4, m), m->offset - start, 2);
        memcpy(p, m->name, strlen(m->name));
        p = put(put(put(p + strlen(m->name), 0xd935, 2), m->offset - start - 4, 2), PAGE, 2);
        memset(p, 0, (size_t)(file + m->offset - p));
        memcpy(file + m->offset, m->data.data, m->data.size);
        p = file + m->offset + m->data.size;
    }
    uint8_t *directory = p;
    for (int i = 0; i < count; i++) {
        memcpy(p, "PK\1\2", 4);
        p = put_fields(put(p + 4, 3 << 8 | 10, 2), members + i);
        p = put(put(put(put(p, 0, 4), 0, 4), 0100644u << 16, 4), members[i].header, 4);
        memcpy(p, members[i].name, strlen(members[i].name));
        p += strlen(members[i].name);
    }
    uint32_t size = (uint32_t)(p - directory);
    memcpy(p, "PK\5\6\0\0\0\0", 8);
    p = put(put(put(p + 8, (uint32_t)count, 2), (uint32_t)count, 2), size, 4);
    return (size_t)(put(put(p, (uint32_t)(directory - file), 4), 0, 2) - file);
}

static const char manifest_text[] =
    "{\"format\": 1, \"libraries\": [{\"features\": [\"amx\"], \"level\": \"v9\", \"member\": \"model.v9.so\"}, "
    "{\"features\": [], \"level\": \"v2\", \"member\": \"model.v2.so\"}], \"members\": {"
    "\"model.v2.so\": {\"sha256\": \"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\", "
    "\"size\": 3}, \"model.v9.so\": {\"sha256\": \"\", \"size\": 0}, \"weights.bin\": {\"pieces\": "
    "[\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"], \"sha256\": \"\", \"size\": 3}}, "
    "\"target\": {\"architecture\": \"x86_64\", \"system\": \"linux\"}, \"weights_size\": 3}";

#define TEXT (sizeof manifest_text - 1)

static const uint8_t empty[1], abc[] = "abc", key[32] = "the key that must have signed it";

static size_t good_artifact(uint8_t *file, span text) {
    part members[] = {{"manifest.json", text, 0, 0},
                      {"model.v2.so", {abc, 3}, 0, 0},
                      {"model.v9.so", {empty, 0}, 0, 0},
                      {"signature.bin", {(const uint8_t *)manifest_text, 96}, 0, 0},
                      {"weights.bin", {abc, 3}, 0, 0}};
    return assemble(file, members, sizeof members / sizeof *members);
}

// What sparsec_open does before it executes anything.
static sparsec_status read_artifact(span file, const uint8_t *signer) {
    archive a;
    manifest m;
    sparsec_error error;
    sparsec_status rc = zip_open(file, &a, &error);
    if (!rc) rc = signature_take(&a, signer, &error);
    if (!rc) rc = manifest_read(&a, &m, &error);
    if (!rc) rc = hash_check_all(&a, &m, &error);
    if (!rc) rc = hash_check(&m, m.code->name, zip_data(&a, m.code), &error);
    if (rc && (error.kind != rc || !*error.message || strchr(error.message, '\n'))) abort();
    return rc;
}

// Where the manifest's checksum is: in the local header, and in the directory.
static void mend(uint8_t *file, size_t total) {
    const uint8_t *end = file + total - 22;
    uint32_t directory = end[16] | (uint32_t)end[17] << 8, crc = crc32_of((span){file + PAGE, TEXT});
    put(file + 14, crc, 4);
    put(file + directory + 16, crc, 4);
}

static void read_patched(const uint8_t *patches, size_t size, bool mended) {
    static uint8_t good[8 * PAGE], file[sizeof good];
    static size_t total;
    if (!total) {
        total = good_artifact(good, (span){(const uint8_t *)manifest_text, TEXT});
        memcpy(file, good, total);
    }
    size_t count = size / 3;
    for (size_t i = 0; i < count; i++) file[(patches[3 * i] | patches[3 * i + 1] << 8) % total] = patches[3 * i + 2];
    memcpy(file + total - 22, good + total - 22, mended ? 22 : 0); // mend looks there
    if (mended) mend(file, total);
    read_artifact((span){file, total}, 0);
    for (size_t i = 0; i < count; i++) {
        size_t at = (patches[3 * i] | patches[3 * i + 1] << 8) % total;
        file[at] = good[at];
    }
    if (mended) mend(file, total);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size) return 0;
    const span rest = {data + 1, size - 1};
    if (*data == 'P' || *data == 'C') {
        read_patched(rest.data, rest.size, *data == 'C');
    } else if (*data == 'M' && rest.size <= LONGEST) {
        static uint8_t file[LONGEST + 8 * PAGE];
        size_t total = good_artifact(file, rest);
        read_artifact((span){file, total}, 0);
    } else {
        uint8_t *copy = malloc(size); // so that a read beyond its end is seen
        if (!copy) abort();
        memcpy(copy, data, size);
        read_artifact((span){copy, size}, size % 2 ? key : 0);
        free(copy);
    }
    return 0;
}

#ifdef REPLAY

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        static uint8_t data[1 << 20];
        FILE *file = fopen(argv[i], "rb");
        if (!file) return 1;
        size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        LLVMFuzzerTestOneInput(data, size);
    }
    printf("%d inputs\n", argc - 1);
    return 0;
}

#endif
