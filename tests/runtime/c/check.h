// check.h - assertions of the C tests: what failed, where, and the library's own words

#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sparsec.h"

#define CHECK(condition)                                                                                      \
    do {                                                                                                      \
        if (!(condition)) {                                                                                   \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                   \
            exit(1);                                                                                          \
        }                                                                                                     \
    } while (0)

// The call succeeds.
#define OK(call)                                                                                              \
    do {                                                                                                      \
        sparsec_error error_ = {SPARSEC_OK, ""};                                                              \
        sparsec_error *error = &error_;                                                                       \
        if (call) {                                                                                           \
            fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, error->message);                    \
            exit(1);                                                                                          \
        }                                                                                                     \
    } while (0)

// The call fails with this kind, and these words are in the message.
#define FAILS(expected, words, call)                                                                          \
    do {                                                                                                      \
        sparsec_error error_ = {SPARSEC_OK, ""};                                                              \
        sparsec_error *error = &error_;                                                                       \
        sparsec_status found_ = (call);                                                                       \
        if (found_ != (expected) || error->kind != found_ || !strstr(error->message, words)) {                \
            fprintf(stderr, "%s:%d: %s: %d '%s'\n", __FILE__, __LINE__, #call, (int)found_, error->message);  \
            exit(1);                                                                                          \
        }                                                                                                     \
    } while (0)

#endif
