// linked.c - the model that is linked with the program: its plan, its kernels and, in read-only data, its weights

#include "../core/plan.h"
#include "model.h"

extern const uint8_t sparsec_weights[]; // from an assembler file that includes weights.bin

sparsec_model *sparsec_linked_model(void) {
    static const sparsec_model linked = {.module = &sparsec_the_plan.module, .weights = sparsec_weights, .code = -1};
    return (sparsec_model *)&linked; // opening is all that ever changes a model
}
