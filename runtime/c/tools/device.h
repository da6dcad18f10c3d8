// device.h - what the two programs for devices share: the one that reads artifacts, and the linked model

#ifndef SPARSEC_DEVICE_H
#define SPARSEC_DEVICE_H

#include "../lib/lib.h"

// A model, and its sample as compiler/sample.py writes it; no data if it has none.
typedef struct subject {
    sparsec_model *model;
    span sample;
} subject;

// A context of one thread in memory that is never given back; NULL, and *error says why, where there is none.
sparsec_context *new_context(const subject *s, sparsec_error *error);

// One line on stderr; 1.
int complain(const char *who, const char *why);

// Runs the sample and compares; says what came out and how long a run takes.  The exit status.
int self_test(const subject *s);

// One inference: reads the files in `inputs`, one for each input, and writes those in `outputs`, raw data all.
// Missing names at the end of `outputs` are outputs that are not written.  The exit status.
int run_files(const subject *s, char *const *inputs, int input_count, char *const *outputs, int output_count);

// What is left of a command line: --selftest, or --input FILE ... --output FILE ...  The exit status.
int device_main(const char *usage, const subject *s, char **args, int count);

// An Ed25519 public key in a PEM file.
bool read_key(const char *path, uint8_t key[32]);

// The bytes of a file in new memory, with a zero behind them; no data, and *why says so, where it cannot be read.
span read_file(const char *path, const char **why);

#endif
