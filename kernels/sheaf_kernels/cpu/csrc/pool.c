/* Jobs on torch's own threads: its OpenMP runtime's GOMP_parallel, given by address, so that there is one pool. */
#include "common.h"
#include <sched.h>
#include <stdlib.h>

/* Looks at what the others do before a waiting thread lets them have its core: some microseconds. */
#define SPINS 400

struct program {
    job **jobs;
    int count, room;
    int at; /* the job that is under way */
};

static void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);
static int most_threads = 1;

EXPORT void sheaf_use_pool(void *parallel, int threads) {
    gomp_parallel = (void (*)(void (*)(void *), void *, unsigned, unsigned))parallel;
    most_threads = parallel ? threads : 1;
}

static void on_threads(void (*function)(void *), void *data, int threads) {
    if (threads > most_threads) threads = most_threads;
    if (threads <= 1) function(data);
    else gomp_parallel(function, data, (unsigned)threads, 0);
}

static void take_items(void *data) {
    job *j = data;
    for (int i; (i = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < j->items;) j->work(j, i);
    if (j->leave) j->leave();
}

/* From the job `at` on, do those of one item; the first that is worth sharing, or the end, is the next. */
static int next_shared(program *p, int at) {
    for (; at < p->count; at++) {
        job *j = p->jobs[at];
        j->next = j->done = 0;
        if (j->count) j->items = j->count(j);
        if (j->items > 1) break;
        take_items(j);
    }
    return at;
}

/* A job ends with its last item, not with the arrival of every thread: one that is held up between two items holds
 * up nobody. It may meet the end of a job late, which is why a job's numbers stay until the program is run anew. */
static void follow(void *data) {
    program *p = data;
    for (int at; (at = __atomic_load_n(&p->at, __ATOMIC_ACQUIRE)) < p->count;) {
        job *j = p->jobs[at];
        for (int i; (i = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < j->items;) {
            j->work(j, i);
            if (__atomic_add_fetch(&j->done, 1, __ATOMIC_ACQ_REL) == j->items) {
                if (j->leave) j->leave();
                __atomic_store_n(&p->at, next_shared(p, at + 1), __ATOMIC_RELEASE);
            }
        }
        if (j->leave) j->leave();
        for (int spins = 0; __atomic_load_n(&p->at, __ATOMIC_ACQUIRE) == at; spins++) {
            if (spins > SPINS) sched_yield();
#if defined(__x86_64__)
            else _mm_pause();
#endif
        }
    }
}

void submit(program *p, job *j, size_t size, int threads) {
    if (p) {
        if (p->count == p->room) {
            p->room = 2 * p->room + 64;
            p->jobs = realloc(p->jobs, sizeof(job *) * (size_t)p->room);
        }
        job *kept = aligned_alloc(64, (size + 63) / 64 * 64);
        memcpy(kept, j, size);
        p->jobs[p->count++] = kept;
        return;
    }
    if (j->count) j->items = j->count(j);
    on_threads(take_items, j, threads < j->items ? threads : j->items);
}

EXPORT program *sheaf_program_new(void) { return calloc(1, sizeof(program)); }

EXPORT void sheaf_program_run(program *p, int threads) {
    p->at = next_shared(p, 0);
    if (p->at < p->count) on_threads(follow, p, threads);
}

EXPORT void sheaf_program_free(program *p) {
    for (int i = 0; i < p->count; i++) free(p->jobs[i]);
    free(p->jobs);
    free(p);
}
