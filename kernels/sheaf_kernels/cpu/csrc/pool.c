/* The threads are torch's own: its OpenMP runtime's GOMP_parallel, given by address, so that there is one pool. */
#include "common.h"

static void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);
static int most_threads = 1;

EXPORT void sheaf_use_pool(void *parallel, int threads) {
    gomp_parallel = (void (*)(void (*)(void *), void *, unsigned, unsigned))parallel;
    most_threads = parallel ? threads : 1;
}

static void take_items(void *data) {
    job *j = data;
    for (int i; (i = __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED)) < j->items;) j->work(j, i);
    if (j->leave) j->leave();
}

void run_job(job *j, int threads) {
    if (threads > most_threads) threads = most_threads;
    if (threads > j->items) threads = j->items;
    if (threads <= 1) take_items(j);
    else gomp_parallel(take_items, j, (unsigned)threads, 0);
}
