/* Paged attention: no gather, one pass over the keys, softmax in float32; see paged_attention.py.
 *
 * Keys are taken in blocks of 64 and chunks of 512 that begin at multiples of these, and each row of queries goes
 * through them by itself: what it is computed beside, and by how many threads, changes no bit. */
#include "common.h"

#define KEYS 64
#define CHUNK 512
#define MAX_ROWS 48
#define MAX_D 256

typedef struct {
    int request, first, tokens, chunk, partial; /* query tokens from `first` on; chunk and partial -1: all of them */
} item;

/* A step's requests in one KV group; Python has the same struct. */
typedef struct {
    const int32_t *table;
    const int64_t *query_start, *context_len;
    const item *items;
    float *partials; /* what chunks give, where some query is split */
    long table_stride;
    int count, window;
} plan;

typedef struct {
    job j;
    const char *q, *keys, *values, *sinks;
    char *out;
    const plan *plan;
    size_t q_stride;
    int Q, K, G, D, block, bf16;
    float scale, softcap;
} attention_job;

typedef struct {
    float top[MAX_ROWS], total[MAX_ROWS]; /* the highest score so far; the sum of e^(score - top) */
    float sums[MAX_ROWS * MAX_D];
} state;

INLINE void begin(state *s, int rows, int D) {
    for (int r = 0; r < rows; r++) { s->top[r] = -INFINITY; s->total[r] = 0.0f; }
    memset(s->sums, 0, sizeof(float) * rows * D);
}

/* Add what one chunk gave (top, total, sums [D]) to a row. */
INLINE void fold(float *top, float *total, float *sums, float top2, float total2, const float *sums2, int D) {
    float high = *top > top2 ? *top : top2;
    if (high == -INFINITY) return;
    float a = exp1(*top - high), b = exp1(top2 - high);
    *top = high;
    *total = *total * a + total2 * b;
    for (int d = 0; d < D; d += LANES)
        store_f32(sums + d, load_f32(sums + d) * a + load_f32(sums2 + d) * b);
}

INLINE vec cap_vec(const attention_job *a, vec s) {
    s *= a->scale;
    if (a->softcap == 0.0f) return s;
    vec e = exp_vec(s * (2.0f / a->softcap)); /* tanh x = 1 - 2 / (e^2x + 1) */
    return (1.0f - 2.0f / (e + 1.0f)) * a->softcap;
}

/* Where a block's keys and values lie, by groups of LANES keys; NULL where no row sees any of these. */
#define GROUPS (KEYS / LANES)
typedef struct {
    const char *keys[GROUPS], *values[GROUPS];
} place;

INLINE place find(const attention_job *a, const int size, int request, int head, long base, long low, long high) {
    const int32_t *table = a->plan->table + request * a->plan->table_stride;
    place p;
    for (int n = 0; n < GROUPS; n++) {
        long key = base + n * LANES;
        p.keys[n] = p.values[n] = NULL;
        if (key + LANES <= low || key >= high) continue;
        size_t at = ((size_t)table[key / a->block] * a->K + head) * a->block + key % a->block;
        p.keys[n] = a->keys + at * a->D * size;
        p.values[n] = a->values + at * a->D * size;
    }
    return p;
}

/* Pages lie anywhere: what comes next is asked for while the arithmetic goes on, a few groups at a time, since more
 * lines than the core can wait for hold it up. */
INLINE void prefetch(const char *const *groups, int from, int to, int bytes) {
    for (int n = from; n < to && n < GROUPS; n++)
        if (groups[n])
            for (int i = 0; i < bytes; i += 64) __builtin_prefetch(groups[n] + i, 0, 2);
}

/* sums of rows += weights [rows][KEYS] times values of the keys from..to-1 (relative to the block). In bfloat16 keys
 * go by pairs, and weights are factors of bfloat16 too. */
INLINE void add_values(const int bf16, const int rows, const int vectors, const char *weights,
                       const char *const *values, int from, int to, int d, int D, float *sums) {
    vec s[ROWS][PANELS_AT_ONCE];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) s[i][j] = load_f32(sums + i * D + d + j * LANES);
    if (!bf16) {
        for (int k = from, end; k < to; k = end) {
            const float *value = (const float *)values[k / LANES] + k % LANES * D + d;
            end = k / LANES * LANES + LANES < to ? k / LANES * LANES + LANES : to;
            for (const float *weight = (const float *)weights + k; weight < (const float *)weights + end; weight++) {
                vec v[2];
                UNROLL for (int j = 0; j < vectors; j++) v[j] = load_f32(value + j * LANES);
                UNROLL for (int i = 0; i < rows; i++)
                    UNROLL for (int j = 0; j < vectors; j++) s[i][j] += weight[i * KEYS] * v[j];
                value += D;
            }
        }
    } else {
        for (int k = from & ~1; k < to; k += 2) {
            const uint16_t *value = (const uint16_t *)values[k / LANES] + k % LANES * D + 2 * d;
            uvec v[2];
            UNROLL for (int j = 0; j < vectors; j++) memcpy(&v[j], value + 2 * j * LANES, sizeof v[j]);
            if (k + 1 == to) /* nobody has written the other one: it may be anything, even NaN */
                UNROLL for (int j = 0; j < vectors; j++) v[j] &= 0xffff;
            add_pairs(rows, vectors, (const factor *)weights + k, KEYS, v, s);
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) store_f32(sums + i * D + d + j * LANES, s[i][j]);
}

#define VALUES_OF(n) case n: \
    if (d + 2 * LANES <= D) add_values(bf16, n, 2, weights, values, from, to, d, D, sums); \
    else add_values(bf16, n, 1, weights, values, from, to, d, D, sums); \
    break;
INLINE void values_of_rows(const int bf16, int rows, const char *weights, const char *const *values, int from, int to,
                           int d, int D, float *sums) {
    switch (rows) {
        VALUES_OF(1) VALUES_OF(2) VALUES_OF(3) VALUES_OF(4) VALUES_OF(5) VALUES_OF(6)
#if ROWS == 12
        VALUES_OF(7) VALUES_OF(8) VALUES_OF(9) VALUES_OF(10) VALUES_OF(11) VALUES_OF(12)
#endif
    }
}

/* One block of keys for all rows: row r is query token r / G, whose own position is `position` + r / G. */
INLINE void attend_block(const attention_job *a, const int bf16, const void *q, int rows, long position, place here,
                         place next, long base, long low, long high, state *s) {
    const int D = a->D, size = bf16 ? 2 : 4, q_size = bf16 ? sizeof(factor) : 4;
    const int from = low > base ? (int)(low - base) : 0, to = high - base < KEYS ? (int)(high - base) : KEYS;
    const int first = from / LANES, groups = (to + LANES - 1) / LANES;
    float scores[MAX_ROWS * KEYS] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r += ROWS) {
        int few = rows - r < ROWS ? rows - r : ROWS;
        for (int n = first; n < groups; n += PANELS_AT_ONCE) {
            if (r == 0) prefetch(here.values, n, n + PANELS_AT_ONCE, LANES * D * size);
            float twice[ROWS * PANELS_AT_ONCE * LANES];
            int alone = n + 1 == groups; /* a last one is met twice, which saves half of the code */
            long apart = alone ? 0 : (here.keys[n + 1] - here.keys[n]) / size;
            float *to = scores + r * KEYS + n * LANES;
            size_t stride = alone ? PANELS_AT_ONCE * LANES : KEYS;
            multiply(bf16, few, (const char *)q + (size_t)r * D * q_size, D, here.keys[n], apart, D, alone ? twice : to,
                     stride);
            for (int i = 0; alone && i < few; i++) store_f32(to + i * KEYS, load_f32(twice + i * stride));
        }
    }
    const ivec lane = LANE_NUMBERS;
    float shift[MAX_ROWS], old[MAX_ROWS];
    for (int r = 0; r < rows; r++) {
        float *row = scores + r * KEYS;
        long own = position + r / a->G, window = a->plan->window ? own - a->plan->window + 1 : 0;
        int end = own - base + 1 < KEYS ? (int)(own - base + 1) : KEYS, start = window > base ? (int)(window - base) : 0;
        vec best = (vec){0} - INFINITY;
        for (int n = first; n < groups; n++) {
            vec score = cap_vec(a, load_f32(row + n * LANES));
            if (n * LANES < start || (n + 1) * LANES > end) {
                ivec seen = (lane + n * LANES < end) & (lane + n * LANES >= start);
                score = select_vec(seen, score, (vec){0} - INFINITY);
            }
            store_f32(row + n * LANES, score);
            best = select_vec((score > best) | (score != score), score, best);
        }
        float high_score = max_vec(best), top = s->top[r] > high_score ? s->top[r] : high_score;
        shift[r] = top == -INFINITY ? 0.0f : top;
        old[r] = s->top[r] - shift[r];
        s->top[r] = top;
    }
    for (int r = 0; r < rows; r += LANES) store_f32(old + r, exp_below(load_f32(old + r)));
    uint16_t half[WIDENS ? 1 : MAX_ROWS * KEYS] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++) {
        vec total = {0};
        for (int n = first; n < groups; n++) {
            int at = r * KEYS + n * LANES;
            vec weight = exp_below(load_f32(scores + at) - shift[r]);
            total += weight;
            if (bf16 && !WIDENS) store_bf16(half + at, weight); else store_f32(scores + at, round_vec(bf16, weight));
        }
        s->total[r] = s->total[r] * old[r] + sum_vec(total);
        if (old[r] != 1.0f)
            for (int d = 0; d < D; d += LANES) store_f32(s->sums + r * D + d, load_f32(s->sums + r * D + d) * old[r]);
    }
    const char *weights = bf16 && !WIDENS ? (const char *)half : (const char *)scores;
    const size_t row = KEYS * (bf16 ? sizeof(factor) : sizeof *scores);
    const int steps = (D + 2 * LANES - 1) / (2 * LANES), at_once = (GROUPS + steps - 1) / steps;
    for (int d = 0; d < D; d += 2 * LANES) { /* these channels of all keys stay in the first cache for all rows */
        int n = d / (2 * LANES) * at_once;
        prefetch(next.keys, n, n + at_once, LANES * D * size);
        for (int r = 0; r < rows; r += ROWS)
            values_of_rows(bf16, rows - r < ROWS ? rows - r : ROWS, weights + r * row, here.values, from, to, d, D,
                           s->sums + r * D);
    }
}

INLINE void finish(const attention_job *a, const int bf16, size_t out, int head, float top, float total,
                   const float *sums) {
    float scale = 1.0f / total;
    if (a->sinks) {
        float sink = load1(bf16, a->sinks, head), high = top > sink ? top : sink;
        float kept = exp1(top - high);
        scale = kept / (total * kept + exp1(sink - high));
    }
    for (int d = 0; d < a->D; d += LANES) store(bf16, a->out, out + d, load_f32(sums + d) * scale);
}

INLINE size_t out_at(const attention_job *a, long token, int head) {
    return ((size_t)token * a->Q + head) * a->D;
}

INLINE void attend_item(const attention_job *a, const int bf16, const item *t, int head) {
    const int D = a->D, G = a->G, size = bf16 ? 2 : 4, rows = t->tokens * G;
    long start = a->plan->query_start[t->request], queries = a->plan->query_start[t->request + 1] - start;
    long position = a->plan->context_len[t->request] - queries + t->first;
    char q[MAX_ROWS * MAX_D * 4] __attribute__((aligned(64)));
    for (int r = 0; r < rows; r++) {
        size_t from = (start + t->first + r / G) * a->q_stride + (size_t)(head * G + r % G) * D;
        if (bf16 && WIDENS)
            for (int d = 0; d < D; d += LANES) store_f32((float *)q + (size_t)r * D + d, load(1, a->q, from + d));
        else memcpy(q + (size_t)r * D * size, a->q + from * size, (size_t)D * size);
    }
    long low = a->plan->window && position - a->plan->window + 1 > 0 ? position - a->plan->window + 1 : 0, high = position + t->tokens;
    if (t->chunk >= 0) {
        if (low < (long)t->chunk * CHUNK) low = (long)t->chunk * CHUNK;
        if (high > (long)(t->chunk + 1) * CHUNK) high = (long)(t->chunk + 1) * CHUNK;
    }
    state s, all;
    place here = find(a, size, t->request, head, low / KEYS * KEYS, low, high);
    int whole = low / CHUNK == (high - 1) / CHUNK; /* one chunk is all there is */
    if (!whole) begin(&all, rows, D);
    for (long chunk = low / CHUNK; chunk * CHUNK < high; chunk++) {
        begin(&s, rows, D);
        long from = low > chunk * CHUNK ? low : chunk * CHUNK;
        long to = high < (chunk + 1) * CHUNK ? high : (chunk + 1) * CHUNK;
        for (long base = from / KEYS * KEYS; base < to; base += KEYS) {
            place next = find(a, size, t->request, head, base + KEYS, low, high);
            attend_block(a, bf16, q, rows, position, here, next, base, from, to, &s);
            here = next;
        }
        if (!whole)
            for (int r = 0; r < rows; r++)
                fold(&all.top[r], &all.total[r], all.sums + r * D, s.top[r], s.total[r], s.sums + r * D, D);
    }
    const state *done = whole ? &s : &all;
    for (int r = 0; r < rows; r++) {
        if (t->partial >= 0) {
            float *p = a->plan->partials + ((size_t)(t->partial * a->K + head) * MAX_ROWS + r) * (D + LANES);
            p[0] = done->top[r];
            p[1] = done->total[r];
            memcpy(p + LANES, done->sums + r * D, sizeof(float) * D);
        } else {
            int q_head = head * G + r % G;
            finish(a, bf16, out_at(a, start + t->first + r / G, q_head), q_head, done->top[r], done->total[r],
                   done->sums + r * D);
        }
    }
}

static void attention_work(job *j, int n) {
    const attention_job *a = (const attention_job *)j;
    const item *t = a->plan->items + n / a->K;
    if (a->bf16) attend_item(a, 1, t, n % a->K); else attend_item(a, 0, t, n % a->K);
}

/* The chunks of one request's only query token, in their order. */
INLINE void merge(const attention_job *a, const int bf16, const item *t, int count) {
    float sums[MAX_D];
    long start = a->plan->query_start[t->request];
    for (int head = 0; head < a->Q; head++) {
        float top = -INFINITY, total = 0.0f;
        memset(sums, 0, sizeof sums);
        for (int n = 0; n < count; n++) {
            const float *p = a->plan->partials + ((size_t)((t[n].partial * a->K + head / a->G) * MAX_ROWS) + head % a->G) * (a->D + LANES);
            fold(&top, &total, sums, p[0], p[1], p + LANES, a->D);
        }
        finish(a, bf16, out_at(a, start, head), head, top, total, sums);
    }
}

/* Items of a step, into `items` of room for `most`; how many, or -1 if there is no room. The longest come first.
 * Single queries over many chunks are split where there are too few of them to keep the threads busy. */
EXPORT int sheaf_attention_items(const int64_t *query_start, const int64_t *context_len, int R, int G, int K,
                                 int window, int threads, item *items, int most) {
    int count = 0, partials = 0, tile = MAX_ROWS / G;
    for (int r = R - 1; r >= 0; r--) {
        long queries = query_start[r + 1] - query_start[r], context = context_len[r];
        long low = window && context - window > 0 ? context - window : 0;
        int first = (int)(low / CHUNK), last = (int)((context - 1) / CHUNK);
        if (queries == 1 && last > first && (long)R * K < 4L * threads) {
            for (int c = first; c <= last; c++) {
                if (count == most) return -1;
                items[count++] = (item){r, 0, 1, c, partials++};
            }
            continue;
        }
        for (long at = (queries - 1) / tile * tile; at >= 0; at -= tile) {
            if (count == most) return -1;
            long tokens = queries - at < tile ? queries - at : tile;
            items[count++] = (item){r, (int)at, (int)tokens, -1, -1};
        }
    }
    return count;
}

/* Floats that the items' partial sums need. */
EXPORT long sheaf_attention_scratch(const item *items, int count, int K, int D) {
    long partials = 0;
    for (int n = 0; n < count; n++) partials += items[n].partial >= 0;
    return partials * K * MAX_ROWS * (D + LANES);
}

static int count_items(job *j) {
    const attention_job *a = (const attention_job *)j;
    return a->plan->count * a->K;
}

static int count_merges(job *j) { return ((const attention_job *)j)->plan->partials != NULL; }

static void merge_work(job *j, int unused) {
    const attention_job *a = (const attention_job *)j;
    const item *items = a->plan->items;
    (void)unused;
    for (int n = 0, same; n < a->plan->count; n += same) {
        same = 1;
        if (items[n].partial < 0) continue;
        while (n + same < a->plan->count && items[n + same].request == items[n].request) same++;
        if (a->bf16) merge(a, 1, items + n, same); else merge(a, 0, items + n, same);
    }
}

EXPORT void sheaf_paged_attention(program *program, const void *q, long q_stride, const void *keys, const void *values,
                                  const plan *plan, const void *sinks, void *out, int Q, int K, int D, int block,
                                  float scale, float softcap, int bf16, int threads) {
    attention_job a = {.j = {.work = attention_work, .count = count_items}, .q = q, .keys = keys, .values = values,
                       .sinks = sinks, .out = out, .plan = plan, .q_stride = (size_t)q_stride, .Q = Q, .K = K,
                       .G = Q / K, .D = D, .block = block, .bf16 = bf16, .scale = scale, .softcap = softcap};
    submit(program, &a.j, sizeof a, threads);
    a.j = (job){.work = merge_work, .count = count_merges};
    submit(program, &a.j, sizeof a, threads);
}
