// floats.h - kernels compute in the default floating-point state: round to nearest, denormals kept
//
// The caller's state is put aside while a model runs and comes back as it was, exception flags
// included.

#ifndef SPARSEC_FLOATS_H
#define SPARSEC_FLOATS_H

#if defined(__x86_64__)

typedef unsigned floats;

static inline void floats_enter(floats *saved) {
    *saved = __builtin_ia32_stmxcsr();
    __builtin_ia32_ldmxcsr(0x1f80); // all exceptions masked, no flags set
}

static inline void floats_leave(const floats *saved) { __builtin_ia32_ldmxcsr(*saved); }

#else

#include <fenv.h>

typedef fenv_t floats;

static inline void floats_enter(floats *saved) {
    fegetenv(saved);
    fesetenv(FE_DFL_ENV);
}

static inline void floats_leave(const floats *saved) { fesetenv(saved); }

#endif

#endif
