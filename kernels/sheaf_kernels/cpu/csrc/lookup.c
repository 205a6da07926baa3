/* A step's first and last acts: what it is given, rows of a table by their numbers, and the likeliest token of each
 * row of logits. */
#include "common.h"

/* Elements that a thread handles before another is woken for more. */
#define WORTH_A_THREAD (1 << 15)

/* What a run of a program is given: pieces that lie elsewhere each time, to where the program was recorded with them.
 * As `Feed` in program.py. */
typedef struct {
    struct { int64_t to, from, size; } *pieces;
    int64_t count;
} feed;

typedef struct {
    job j;
    const feed *given;
} feed_job;

static void feed_work(job *j, int item) {
    (void)item; /* the only one */
    const feed *f = ((const feed_job *)j)->given;
    for (int64_t i = 0; i < f->count; i++)
        memcpy((void *)(uintptr_t)f->pieces[i].to, (const void *)(uintptr_t)f->pieces[i].from, (size_t)f->pieces[i].size);
}

EXPORT void sheaf_feed(program *program, const void *given) {
    feed_job k = {.j = {.work = feed_work, .items = 1}, .given = given};
    submit(program, &k.j, sizeof k, 1);
}

typedef struct {
    job j;
    const char *table, *index;
    char *y;
    float factor;
    int T, C, bf16, wide, step; /* wide: numbers of 8 bytes, not 4 */
} take_job;

INLINE void take_rows(const take_job *k, const int bf16, int t0, int t1) {
    const int C = k->C, full = C & ~(LANES - 1);
    for (int t = t0; t < t1; t++) {
        int64_t row = k->wide ? ((const int64_t *)k->index)[t] : ((const int32_t *)k->index)[t];
        size_t from = (size_t)row * C, to = (size_t)t * C;
        if (k->factor == 1.0f) {
            const size_t size = bf16 ? 2 : 4;
            memcpy(k->y + to * size, k->table + from * size, C * size);
            continue;
        }
        for (int c = 0; c < full; c += LANES) store(bf16, k->y, to + c, load(bf16, k->table, from + c) * k->factor);
        for (int c = full; c < C; c++) store1(bf16, k->y, to + c, load1(bf16, k->table, from + c) * k->factor);
    }
}

static void take_work(job *j, int item) {
    const take_job *k = (const take_job *)j;
    int t0 = item * k->step, t1 = t0 + k->step < k->T ? t0 + k->step : k->T;
    if (k->bf16) take_rows(k, 1, t0, t1); else take_rows(k, 0, t0, t1);
}

/* y [T, C] = factor * rows `index` of table [*, C], all in one piece. */
EXPORT void sheaf_take_rows(program *program, const void *table, const void *index, void *y, float factor, int T, int C, int wide, int bf16,
                            int threads) {
    int step = WORTH_A_THREAD / C + 1;
    take_job k = {.j = {.work = take_work, .items = (T + step - 1) / step}, .table = table, .index = index, .y = y, .factor = factor, .T = T, .C = C,
                  .bf16 = bf16, .wide = wide, .step = step};
    submit(program, &k.j, sizeof k, threads);
}

typedef struct {
    job j;
    const char *x;
    size_t x_stride;
    int64_t *y;
    int V, bf16;
} likeliest_job;

/* The first of the largest, or -1 where that is no finite number or one of them is none. Lanes look for the largest;
 * a second pass finds where it is. */
INLINE int64_t likeliest(const int bf16, const char *x, int V) {
    const int full = V & ~(LANES - 1);
    vec most = (vec){0} - INFINITY;
    ivec odd = {0};
    for (int v = 0; v < full; v += LANES) {
        vec now = load(bf16, x, v);
        odd |= now != now;
        most = greater_vec(now, most);
    }
    float best = max_vec(most);
    int numbers = 1;
    for (int n = 0; n < LANES; n++) numbers &= !odd[n];
    for (int v = full; v < V; v++) {
        float now = load1(bf16, x, v);
        numbers &= now == now;
        if (now > best) best = now;
    }
    if (!numbers || best == INFINITY || best == -INFINITY) return -1;
    int at = 0;
    for (; at < full; at += LANES) {
        ivec here = load(bf16, x, at) == (vec){0} + best;
        int any = 0;
        UNROLL for (int n = 0; n < LANES; n++) any |= here[n];
        if (any) break;
    }
    while (load1(bf16, x, at) != best) at++;
    return at;
}

static void likeliest_work(job *j, int item) {
    const likeliest_job *k = (const likeliest_job *)j;
    const char *x = k->x + item * k->x_stride * (k->bf16 ? 2 : 4);
    k->y[item] = k->bf16 ? likeliest(1, x, k->V) : likeliest(0, x, k->V);
}

/* y [S] of x [S, V] by rows with a stride in elements. */
EXPORT void sheaf_likeliest(program *program, const void *x, long x_stride, int64_t *y, int S, int V, int bf16, int threads) {
    likeliest_job k = {.j = {.work = likeliest_work, .items = S}, .x = x, .x_stride = (size_t)x_stride, .y = y, .V = V, .bf16 = bf16};
    submit(program, &k.j, sizeof k, (long)S * V < 8L * WORTH_A_THREAD ? 1 : threads);
}
