// zip.c - the container: a stored zip with exactly one spelling
//
// Headers are not interpreted beyond name, size, checksum and position: they are rebuilt from these
// and compared, so that a flipped bit outside the members' data is always seen.

#include "lib.h"

#define PAGE 4096u
#define LOCAL 30u
#define CENTRAL 46u
#define END 22u
#define PAD 6u

static uint32_t get16(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }
static uint32_t get32(const uint8_t *p) { return get16(p) | get16(p + 2) << 16; }

static uint8_t *put16(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
    return p + 2;
}

static uint8_t *put32(uint8_t *p, uint32_t v) { return put16(put16(p, v & 0xffff), v >> 16); }

// Version needed, flags, method, time, date, checksum, sizes: the same run of fields in both headers.
static uint8_t *put_common(uint8_t *p, const member *m) {
    static const uint16_t fixed[] = {10, 0, 0, 0, 0x21};
    for (int i = 0; i < 5; i++) p = put16(p, fixed[i]);
    return put16(put32(put32(put32(p, m->crc), m->size), m->size), (uint32_t)strlen(m->name));
}

static bool local_matches(const uint8_t *file, const member *m) {
    uint8_t expected[LOCAL + 64 + PAD], *p = expected;
    size_t name = strlen(m->name);
    uint32_t extra = m->offset - m->header - LOCAL - (uint32_t)name;
    memcpy(p, "PK\3\4", 4);
    p = put16(put_common(p + 4, m), extra);
    memcpy(p, m->name, name);
    p = put16(put16(put16(p + name, 0xd935), extra - 4), PAGE);
    const uint8_t *found = file + m->header;
    size_t head = (size_t)(p - expected), padding = m->offset - m->header - head;
    if (memcmp(found, expected, head)) return false;
    const uint8_t *zeros = found + head; // each byte is like the next one
    return !padding || (!zeros[0] && !memcmp(zeros, zeros + 1, padding - 1));
}

static bool central_matches(const uint8_t *found, const member *m) {
    uint8_t expected[CENTRAL], *p = expected;
    memcpy(p, "PK\1\2", 4);
    p = put_common(put16(p + 4, 3 << 8 | 10), m);
    for (int i = 0; i < 4; i++) p = put16(p, 0);
    put32(put32(p, 0100644u << 16), m->header);
    return !memcmp(found, expected, CENTRAL);
}

static bool valid_name(const uint8_t *name, size_t size) {
    if (!size || size > 64 || name[0] == '.' || name[0] == '-') return false;
    for (size_t i = 0; i < size; i++) {
        uint8_t c = name[i];
        bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        if (!letter && !(c >= '0' && c <= '9') && c != '.' && c != '_' && c != '-') return false;
    }
    return true;
}

static sparsec_status damaged(sparsec_error *error, const char *what) {
    return fail(error, SPARSEC_E_ARTIFACT, "damaged artifact: %s", what);
}

// One entry of the directory at *at, which moves on; `where` is where its local header must be.
static sparsec_status read_entry(archive *a, size_t *at, size_t end, uint32_t directory, uint32_t where,
                                 sparsec_error *error) {
    const uint8_t *entry = a->file.data + *at;
    if (end - *at < CENTRAL) return damaged(error, "the zip directory is cut off");
    size_t name = get16(entry + 28);
    if (end - *at - CENTRAL < name || !valid_name(entry + CENTRAL, name))
        return damaged(error, "a member's name is not plain ASCII");
    member *m = a->members + a->count;
    *m = (member){.header = get32(entry + 42), .size = get32(entry + 24), .crc = get32(entry + 16)};
    memcpy(m->name, entry + CENTRAL, name);
    uint64_t start = (uint64_t)m->header + LOCAL + name + PAD;
    uint64_t offset = (start + PAGE - 1) / PAGE * PAGE;
    if (zip_find(a, m->name)) return damaged(error, "a member is there twice");
    if (m->header != where || offset + m->size > directory)
        return damaged(error, "a member does not follow the one before it");
    m->offset = (uint32_t)offset;
    if (!central_matches(entry, m) || !local_matches(a->file.data, m))
        return damaged(error, "a member has an unexpected header");
    a->count++;
    *at += CENTRAL + name;
    return SPARSEC_OK;
}

sparsec_status zip_open(span file, archive *a, sparsec_error *error) {
    *a = (archive){.file = file};
    if (file.size < 4 || memcmp(file.data, "PK\3\4", 4))
        return fail(error, SPARSEC_E_FORMAT, "not a sparsec artifact: it must begin with the bytes PK 03 04");
    if (file.size < END || file.size > 0xfffffffeu) return damaged(error, "its size is not possible");
    const uint8_t *last = file.data + file.size - END;
    uint32_t count = get16(last + 10), size = get32(last + 12), directory = get32(last + 16);
    uint8_t expected[END];
    memcpy(expected, "PK\5\6\0\0\0\0", 8);
    put16(put32(put32(put16(put16(expected + 8, count), count), size), directory), 0);
    if (memcmp(last, expected, END))
        return damaged(error, "no zip end record in the last 22 bytes; the file is cut off");
    if (!count || count > MAX_MEMBERS || (uint64_t)directory + size + END != file.size)
        return damaged(error, "the zip directory is not where the end record says");
    size_t at = directory;
    uint32_t where = 0;
    for (uint32_t i = 0; i < count; i++) {
        sparsec_status rc = read_entry(a, &at, directory + (size_t)size, directory, where, error);
        if (rc) return rc;
        where = a->members[i].offset + a->members[i].size;
    }
    if (at != directory + (size_t)size || where != directory)
        return damaged(error, "there are bytes that belong to no member");
    if (strcmp(a->members[0].name, "manifest.json"))
        return fail(error, SPARSEC_E_FORMAT, "not a sparsec artifact: its first member must be manifest.json");
    return SPARSEC_OK;
}

const member *zip_find(const archive *a, const char *name) {
    for (int i = 0; i < a->count; i++)
        if (!strcmp(a->members[i].name, name)) return a->members + i;
    return 0;
}

span zip_data(const archive *a, const member *m) { return (span){a->file.data + m->offset, m->size}; }

uint32_t crc32_of(span data) {
    static const uint32_t of_four_bits[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    uint32_t crc = ~0u;
    for (size_t i = 0; i < data.size; i++) {
        crc ^= data.data[i];
        crc = crc >> 4 ^ of_four_bits[crc & 15];
        crc = crc >> 4 ^ of_four_bits[crc & 15];
    }
    return ~crc;
}
