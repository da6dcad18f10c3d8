// manifest.c - the fields of manifest.json that a loader uses, checked before they are believed

#include "lib.h"

#define MAX_BYTES (64u << 20)

#define PRINT(s) (int)(s).size, (const char *)(s).data

static sparsec_status bad(sparsec_error *error, const char *field) {
    return fail(error, SPARSEC_E_ARTIFACT, "damaged artifact: manifest.json field '%s' is missing or wrong", field);
}

// The member of a library object; NULL if there is none.
static const member *code_of(const archive *a, span library) {
    span name = json_text(json_get(library, "member"));
    char text[65] = {0};
    if (!name.size || name.size > 64) return 0;
    memcpy(text, name.data, name.size);
    return zip_find(a, text);
}

// Whether the CPU has every feature of the library; those that it lacks are listed in `missing`.
static bool runs_here(span library, char *missing, size_t size) {
    span list = json_get(library, "features"), feature;
    size_t used = 0;
    missing[0] = 0;
    for (size_t at = 0; (feature = json_next(list, &at)).data && used < size;)
        if (!cpu_has(json_text(feature)))
            used += (size_t)snprintf(missing + used, size - used, "%s%.*s", used ? ", " : "", PRINT(json_text(feature)));
    return !used;
}

static const char *architecture(void) {
#if defined(__x86_64__)
    return "x86_64";
#elif defined(__aarch64__)
    return "aarch64";
#elif defined(__arm__)
    return "armv7";
#elif defined(__riscv) && __riscv_xlen == 64
    return "riscv64";
#else
    return "unknown";
#endif
}

static bool same(span a, span b) { return a.size == b.size && !memcmp(a.data, b.data, a.size); }

// The first library for this architecture that the CPU can run, or a refusal with the architectures that there
// are, or with what the CPU lacks for the least library of its own.
static sparsec_status choose_library(const archive *a, manifest *m, sparsec_error *error) {
    span target = json_get(m->text, "target"), system = json_text(json_get(target, "system"));
    span all = json_text(json_get(target, "architecture")); // of libraries that name none
    span list = json_get(m->text, "libraries"), library, level = {0}, known[MAX_MEMBERS];
    char missing[500] = "", others[200] = "";
    size_t used = 0, count = 0;
    if (!system.data) return bad(error, "target");
    for (size_t at = 0; (library = json_next(list, &at)).data;) {
        span machine = json_text(json_get(library, "architecture")), name = json_text(json_get(library, "level"));
        if (!machine.data) machine = all;
        if (!machine.data) return bad(error, "target");
        const member *code = code_of(a, library);
        if (!code || !json_get(library, "features").data || !name.data) return bad(error, "libraries");
        if (machine.size == strlen(architecture()) && !memcmp(machine.data, architecture(), machine.size) &&
            json_is_text(json_get(target, "system"), "linux")) {
            m->code = code;
            level = name;
            if (runs_here(library, missing, sizeof missing)) return SPARSEC_OK;
            continue;
        }
        bool told = false;
        for (size_t i = 0; i < count; i++) told = told || same(known[i], machine);
        if (told || count == MAX_MEMBERS || used >= sizeof others) continue;
        known[count++] = machine;
        used += (size_t)snprintf(others + used, sizeof others - used, "%s%.*s", used ? " or " : "", PRINT(machine));
    }
    if (!level.data && !used) return bad(error, "libraries");
    if (!level.data)
        return fail(error, SPARSEC_E_TARGET, "the artifact is for %s %.*s, this machine is %s linux", others,
                    PRINT(system), architecture());
    return fail(error, SPARSEC_E_TARGET, "this CPU lacks %s, which level %.*s needs; compile for a lower level", missing,
                PRINT(level));
}

sparsec_status manifest_read(const archive *a, manifest *m, sparsec_error *error) {
    const member *head = a->members;
    *m = (manifest){.text = zip_data(a, head), .weights = zip_find(a, "weights.bin")};
    if (head->size > MAX_BYTES) return fail(error, SPARSEC_E_ARTIFACT, "damaged artifact: manifest.json is too large");
    if (crc32_of(m->text) != head->crc)
        return fail(error, SPARSEC_E_ARTIFACT, "damaged artifact: the checksum of manifest.json is wrong");
    if (!json_valid(m->text)) return fail(error, SPARSEC_E_ARTIFACT, "damaged artifact: manifest.json is not JSON");
    while (m->text.size && strchr(" \n\r\t", m->text.data[0])) m->text.data++, m->text.size--;
    uint64_t format, weights = 0;
    if (!json_number(json_get(m->text, "format"), &format) || format != SPARSEC_FORMAT) {
        span found = json_get(m->text, "format");
        return fail(error, SPARSEC_E_FORMAT, "artifact format %.*s is not format %d, the one that this sparsec reads",
                    found.size < 20 ? (int)found.size : 20, found.data ? (const char *)found.data : "", SPARSEC_FORMAT);
    }
    span table = json_get(m->text, "members");
    for (int i = 1; i < a->count; i++) {
        uint64_t size;
        if (!json_number(json_get(json_get(table, a->members[i].name), "size"), &size) || size != a->members[i].size)
            return bad(error, "members");
    }
    if (!json_number(json_get(m->text, "weights_size"), &weights) || weights != (m->weights ? m->weights->size : 0))
        return bad(error, "weights_size");
    if (json_get(m->text, "gpu").data && !(m->kernels = zip_find(a, "kernels.fatbin"))) return bad(error, "gpu");
    return choose_library(a, m, error);
}
