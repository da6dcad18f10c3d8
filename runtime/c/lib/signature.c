// signature.c - the member that signs the manifest, see runtime/signature.py

#include "lib.h"

#define KEY 32u
#define RECORD (KEY + 64u)

static const char *key_name(const uint8_t *key, char text[33]) {
    for (int i = 0; i < 16; i++) snprintf(text + 2 * i, 3, "%02x", key[i]);
    return text;
}

static sparsec_status check(span manifest, span record, const uint8_t *key, sparsec_error *error) {
    char wanted[33], found[33];
    key_name(key, wanted);
    if (!record.data)
        return fail(error, SPARSEC_E_SIGNATURE, "it is not signed; a signature by the key %s is required", wanted);
    if (memcmp(record.data, key, KEY))
        return fail(error, SPARSEC_E_SIGNATURE, "it is signed by the key %s; the key %s is required",
                    key_name(record.data, found), wanted);
    if (!ed25519_verify(key, record.data + KEY, manifest))
        return fail(error, SPARSEC_E_SIGNATURE, "its signature by the key %s is wrong: it was changed after signing",
                    wanted);
    return SPARSEC_OK;
}

sparsec_status signature_take(archive *a, const uint8_t *key, sparsec_error *error) {
    span record = {0};
    int kept = 0;
    for (int i = 0; i < a->count; i++) {
        const member *m = a->members + i;
        if (strcmp(m->name, "signature.bin")) {
            a->members[kept++] = *m;
            continue;
        }
        record = zip_data(a, m);
        if (m->size != RECORD || crc32_of(record) != m->crc)
            return fail(error, SPARSEC_E_ARTIFACT, "damaged artifact: signature.bin has a wrong size or checksum");
    }
    a->count = kept;
    return key ? check(zip_data(a, a->members), record, key, error) : SPARSEC_OK;
}
