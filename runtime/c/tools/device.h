// device.h - what the two programs for devices share: the one that reads artifacts, and the linked model

#ifndef SPARSEC_DEVICE_H
#define SPARSEC_DEVICE_H

#include "../lib/lib.h"

// A model, and its sample as compiler/sample.py writes it; no data if it has none.
typedef struct subject {
    sparsec_model *model;
    span sample;
} subject;

// A context of one thread in memory that is never given back; NULL after a complaint.
sparsec_context *new_context(const subject *s);

// One line, printf-style, of text that ends with it; static programs know the formats in libc.c.
__attribute__((format(printf, 2, 3))) void say(int fd, const char *format, ...);

// One line on stderr; 1.
int complain(const char *who, const char *why);

// Runs the sample and compares; says what came out and how long a run takes.  The exit status.
int self_test(const subject *s);

// What is left of a command line: --selftest, or --input FILE ... --output FILE ...  The exit status.
int device_main(const char *usage, const subject *s, char **args, int count);

// An Ed25519 public key in a PEM file.
bool read_key(const char *path, uint8_t key[32]);

// Zeros, aligned to a page; NULL if there are none.
void *new_memory(size_t bytes);

// The bytes of a file in new memory, with a zero behind them; no data, and *why says so, where it cannot be read.
span read_file(const char *path, const char **why);
void drop_file(span file);

// The exit status; complains.
int write_file(const char *path, const void *data, size_t bytes);

#endif
