// verify.c - sparsec-verify FILE KEY.pub: is FILE.sig that key's signature of FILE?
//
// FILE.sig has 96 bytes, the public key and the signature, as an artifact's signature.bin.

#include "device.h"

int main(int count, char **args) {
    if (count != 3) return complain("usage", "sparsec-verify FILE KEY.pub"), 2;
    const char *path = args[1];
    uint8_t key[32];
    char name[4096];
    const char *why;
    if (!read_key(args[2], key)) return complain(args[2], "not an Ed25519 public key in PEM");
    span file = read_file(path, &why);
    if (!file.data) return complain(path, why);
    snprintf(name, sizeof name, "%s.sig", path);
    span signature = read_file(name, &why);
    if (!signature.data) return complain(path, "it is not signed");
    if (signature.size != 96 || memcmp(signature.data, key, 32))
        return complain(path, "it is signed by another key");
    return ed25519_verify(key, signature.data + 32, file) ? 0 : complain(path, "its signature is wrong");
}
