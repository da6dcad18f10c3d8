// lib.h - what the files of libsparsec share; nothing here is seen by its users

#ifndef SPARSEC_LIB_H
#define SPARSEC_LIB_H

#include <stdbool.h>
#include <string.h>

#include "../error.h"

typedef struct span {
    const uint8_t *data;
    size_t size;
} span;

// Section: zip - the container, see runtime/container.py for the rules

#define MAX_MEMBERS 64

typedef struct member {
    char name[65];
    uint32_t header, offset, size, crc;
} member;

typedef struct archive {
    span file;
    int count;
    member members[MAX_MEMBERS];
} archive;

sparsec_status zip_open(span file, archive *archive, sparsec_error *error);
const member *zip_find(const archive *archive, const char *name);
span zip_data(const archive *archive, const member *m);
uint32_t crc32_of(span data);

// Section: json - read in place, nothing is allocated
//
// json_valid must have accepted the whole text before any other function sees a part of it.

#define JSON_MAX_DEPTH 32

bool json_valid(span text);
// The value of `key` in an object; {0} if there is none or `object` is no object.  Keys are compared
// as they are written, so only plain ASCII keys can be found.
span json_get(span object, const char *key);
// Walks a list: start with at = 0; {0} at the end or if `list` is no list.
span json_next(span list, size_t *at);
bool json_is_text(span value, const char *text); // a string with exactly this plain ASCII content
span json_text(span value);                      // a string's content as written; {0} if it is none
bool json_number(span value, uint64_t *number);  // a non-negative integer of at most 18 digits

// Section: manifest

typedef struct manifest {
    span text;
    const member *code;    // the first library that this CPU can run
    const member *weights; // NULL if the model has none
    const member *kernels; // for GPUs; NULL if the model runs on CPUs
} manifest;

// All checks of an artifact but the hashes.
sparsec_status manifest_read(const archive *archive, manifest *manifest, sparsec_error *error);

// Section: sha256

// Ways to hash `count` blocks of 64 bytes: of one message, of two.
typedef struct sha256_code {
    void (*one)(uint32_t state[8], const uint8_t *data, size_t count);
    void (*two)(uint32_t state[2][8], const uint8_t *const data[2], size_t count);
} sha256_code;

extern const uint32_t sha256_constants[64];
extern const sha256_code sha256_portable;
const sha256_code *sha256_cpu(void);     // by instructions for it; NULL if this CPU has none
const sha256_code *sha256_fastest(void); // of these two

void sha256(const sha256_code *code, span data, uint8_t digest[32]);
void sha256_two(const sha256_code *code, const span data[2], uint8_t digest[2][32]);

// Section: signatures

void sha512(const span *parts, size_t count, uint8_t digest[64]); // of the parts one after the other
bool ed25519_verify(const uint8_t key[32], const uint8_t signature[64], span message);

// Takes the signature out of the members, which the manifest's table then lists all, and, unless `key` is
// NULL, refuses an archive whose manifest that key has not signed.
sparsec_status signature_take(archive *archive, const uint8_t *key, sparsec_error *error);

// Section: hash - what members hold against what the manifest says

// Every member but the manifest and the code that was chosen.
sparsec_status hash_check_all(const archive *archive, const manifest *manifest, sparsec_error *error);
sparsec_status hash_check(const manifest *manifest, const char *name, span data, sparsec_error *error);

// Section: cpu

// Whether this CPU and its system offer the feature, named as LLVM names it.
bool cpu_has(span feature);

#endif
