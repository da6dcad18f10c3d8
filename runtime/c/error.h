// error.h - filling a sparsec_error; shared by the core and the library for C users

#ifndef SPARSEC_ERROR_H
#define SPARSEC_ERROR_H

#include <stdarg.h>
#include <stdio.h>

#include "sparsec.h"

// Line ends inside a message (a path or a name may have some) become spaces: messages are one line.
static inline void one_line(char *text) {
    for (; *text; text++)
        if (*text == '\n' || *text == '\r') *text = ' ';
}

static inline sparsec_status vfail(sparsec_error *error, sparsec_status kind, const char *format, va_list args) {
    if (error) {
        error->kind = kind;
        vsnprintf(error->message, sizeof error->message, format, args);
        one_line(error->message);
    }
    return kind;
}

// Fills *error, unless it is NULL, and returns `kind`.
#ifdef SPARSEC_BARE // one copy, in bare.c: such programs have little room
__attribute__((format(printf, 3, 4))) sparsec_status fail(sparsec_error *error, sparsec_status kind,
                                                          const char *format, ...) __asm__("sparsec_fail");
#else
__attribute__((format(printf, 3, 4))) static inline sparsec_status fail(sparsec_error *error, sparsec_status kind,
                                                                        const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfail(error, kind, format, args);
    va_end(args);
    return kind;
}
#endif

#endif
