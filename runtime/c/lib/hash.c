// hash.c - the SHA-256 of an artifact's members: two pieces at a time, on every CPU where there are many
//
// A large member has a hash for each MiB in the manifest, so that no CPU waits for what another one hashes.

#include <stdatomic.h>

#include "lib.h"

#define PIECE (1u << 20)
#define WORTH_A_THREAD (4 * PIECE)
#define MAX_THREADS 8

static bool is_hash(span wanted, const uint8_t digest[32]) {
    static const char digits[] = "0123456789abcdef";
    if (wanted.size != 64) return false;
    for (int i = 0; i < 32; i++)
        if (wanted.data[2 * i] != digits[digest[i] >> 4] || wanted.data[2 * i + 1] != digits[digest[i] & 15])
            return false;
    return true;
}

static span entry_of(const manifest *m, const char *name) { return json_get(json_get(m->text, "members"), name); }

static sparsec_status wrong(sparsec_error *error, const char *name) {
    return fail(error, SPARSEC_E_ARTIFACT, "damaged artifact: the SHA-256 of %s is not the manifest's", name);
}

sparsec_status hash_check(const manifest *m, const char *name, span data, sparsec_error *error) {
    uint8_t digest[32];
    sha256(sha256_fastest(), data, digest);
    return is_hash(json_text(json_get(entry_of(m, name), "sha256")), digest) ? SPARSEC_OK : wrong(error, name);
}

// Section: pieces

typedef struct piece {
    span data, wanted;
    int member;
} piece;

typedef struct job {
    const archive *archive;
    const manifest *manifest;
    const sha256_code *code;
    atomic_uint next;   // the first piece that nobody has taken
    atomic_int damaged; // the first member with a wrong hash, or the count of members
} job;

// A walk over all pieces in order; every thread makes its own.
typedef struct walk {
    const job *job;
    int member; // the one at hand; 0, the manifest, before the first
    uint32_t index;
    span rest;  // what is left of the member
    bool more;  // whether there is a piece in it, which may be empty
    span entry, pieces;
    size_t at; // in `pieces`
} walk;

static bool next_member(walk *w) {
    const archive *a = w->job->archive;
    do
        if (++w->member >= a->count) return false;
    while (a->members + w->member == w->job->manifest->code); // hashed when it has been copied
    const member *m = a->members + w->member;
    w->rest = zip_data(a, m);
    w->entry = entry_of(w->job->manifest, m->name);
    w->pieces = json_get(w->entry, "pieces");
    w->at = 0;
    return true;
}

static bool next_piece(walk *w, piece *p) {
    if (!w->more && !next_member(w)) return false;
    bool whole = !w->pieces.data;
    size_t size = whole || w->rest.size < PIECE ? w->rest.size : PIECE;
    span wanted = whole ? json_get(w->entry, "sha256") : json_next(w->pieces, &w->at);
    *p = (piece){{w->rest.data, size}, json_text(wanted), w->member};
    w->rest.data += size;
    w->rest.size -= size;
    w->more = w->rest.size;
    w->index++;
    return true;
}

static void check_piece(job *j, const piece *p, const uint8_t digest[32]) {
    if (is_hash(p->wanted, digest)) return;
    int first = atomic_load(&j->damaged);
    while (p->member < first && !atomic_compare_exchange_weak(&j->damaged, &first, p->member)) {
    }
}

// Hashes pieces, two at a time, until there are none.
static void *work(void *argument) {
    job *j = argument;
    walk w = {.job = j};
    for (;;) {
        uint32_t first = atomic_fetch_add(&j->next, 2);
        piece pieces[2];
        int count = 0;
        while (count < 2 && next_piece(&w, pieces + count)) count += w.index > first;
        uint8_t digests[2][32];
        if (!count) return 0;
        if (count == 2)
            sha256_two(j->code, (const span[]){pieces[0].data, pieces[1].data}, digests);
        else
            sha256(j->code, pieces[0].data, digests[0]);
        for (int i = 0; i < count; i++) check_piece(j, pieces + i, digests[i]);
    }
}

#ifdef SPARSEC_NO_THREADS

static void work_on_all_cpus(job *j, uint64_t bytes) {
    (void)bytes;
    work(j);
}

#else

#include <pthread.h>
#include <signal.h>

#include "../cpus.h"

static void work_on_all_cpus(job *j, uint64_t bytes) {
    pthread_t threads[MAX_THREADS - 1];
    int wanted = bytes < MAX_THREADS * WORTH_A_THREAD ? (int)(bytes / WORTH_A_THREAD) : MAX_THREADS, started = 0;
    int cpus = wanted > 1 ? usable_cpus() : 1;
    if (wanted > cpus) wanted = cpus;
    if (wanted < 2) {
        work(j);
        return;
    }
    sigset_t all, before; // signals are the application's
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (started < wanted - 1 && !pthread_create(threads + started, 0, work, j)) started++;
    pthread_sigmask(SIG_SETMASK, &before, 0);
    work(j);
    while (started) pthread_join(threads[--started], 0);
}

#endif

sparsec_status hash_check_all(const archive *a, const manifest *m, sparsec_error *error) {
    job j = {.archive = a, .manifest = m, .code = sha256_fastest(), .damaged = a->count};
    work_on_all_cpus(&j, a->file.size);
    return j.damaged < a->count ? wrong(error, a->members[j.damaged].name) : SPARSEC_OK;
}
