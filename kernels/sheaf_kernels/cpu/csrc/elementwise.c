/* What is done to one row by itself: norms, the gated activation, rotation with the write into the pages. */
#include "common.h"

typedef struct {
    job j;
    const char *x, *residual, *weight;
    char *y, *h;
    size_t x_stride, residual_stride;
    float eps;
    int T, C, bf16, wide, step;
} norm_job;

INLINE void norm_rows(const norm_job *n, const int bf16, int t0, int t1) {
    const int C = n->C, full = C & ~(LANES - 1);
    for (int t = t0; t < t1; t++) {
        size_t in = t * n->x_stride, res = t * n->residual_stride, out = (size_t)t * C;
        const char *h = n->x;
        size_t at = in;
        v16 squares = {0};
        float rest = 0.0f;
        if (n->residual) {
            for (int c = 0; c < full; c += LANES) {
                v16 v = round16(bf16, load(bf16, n->x, in + c) + load(bf16, n->residual, res + c));
                store(bf16, n->h, out + c, v);
                squares += v * v;
            }
            for (int c = full; c < C; c++) {
                float v = round1(bf16, load1(bf16, n->x, in + c) + load1(bf16, n->residual, res + c));
                store1(bf16, n->h, out + c, v);
                rest += v * v;
            }
            h = n->h;
            at = out;
        } else {
            for (int c = 0; c < full; c += LANES) { v16 v = load(bf16, h, at + c); squares += v * v; }
            for (int c = full; c < C; c++) { float v = load1(bf16, h, at + c); rest += v * v; }
        }
        float scale = 1.0f / sqrtf((sum16(squares) + rest) / C + n->eps);
        for (int c = 0; c < full; c += LANES) {
            v16 v = load(bf16, h, at + c) * scale;
            v16 w = n->wide ? load_f32((const float *)n->weight + c) : load(bf16, n->weight, c);
            store(bf16, n->y, out + c, (n->wide ? v : round16(bf16, v)) * w);
        }
        for (int c = full; c < C; c++) {
            float v = load1(bf16, h, at + c) * scale;
            float w = n->wide ? ((const float *)n->weight)[c] : load1(bf16, n->weight, c);
            store1(bf16, n->y, out + c, (n->wide ? v : round1(bf16, v)) * w);
        }
    }
}

static void norm_work(job *j, int item) {
    const norm_job *n = (const norm_job *)j;
    int t0 = item * n->step, t1 = t0 + n->step < n->T ? t0 + n->step : n->T;
    if (n->bf16) norm_rows(n, 1, t0, t1); else norm_rows(n, 0, t0, t1);
}

/* Elements that a thread handles before another is woken for more. */
#define WORTH_A_THREAD (1 << 15)
INLINE int rows_at_once(int columns) { return columns < WORTH_A_THREAD ? WORTH_A_THREAD / columns : 1; }

EXPORT void sheaf_rms_norm(program *program, const void *x, long x_stride, const void *residual, long residual_stride,
                           const void *weight, void *y, void *h, float eps, int T, int C, int bf16, int wide,
                           int threads) {
    int step = rows_at_once(C);
    norm_job n = {.j = {.work = norm_work, .items = (T + step - 1) / step}, .x = x, .residual = residual, .weight = weight,
                  .y = y, .h = h, .x_stride = (size_t)x_stride, .residual_stride = (size_t)residual_stride,
                  .eps = eps, .T = T, .C = C, .bf16 = bf16, .wide = wide, .step = step};
    submit(program, &n.j, sizeof n, threads);
}

typedef struct {
    job j;
    const char *gate_up;
    char *y;
    int T, I, bf16, step;
} swiglu_job;

INLINE void swiglu_rows(const swiglu_job *s, const int bf16, int t0, int t1) {
    const int I = s->I, full = I & ~(LANES - 1);
    for (int t = t0; t < t1; t++) {
        size_t gate = (size_t)t * 2 * I, up = gate + I, out = (size_t)t * I;
        for (int c = 0; c < full; c += LANES) {
            v16 g = load(bf16, s->gate_up, gate + c), u = load(bf16, s->gate_up, up + c);
            store(bf16, s->y, out + c, round16(bf16, g / (1.0f + exp16(-g))) * u);
        }
        for (int c = full; c < I; c++) {
            float g = load1(bf16, s->gate_up, gate + c), u = load1(bf16, s->gate_up, up + c);
            store1(bf16, s->y, out + c, round1(bf16, g / (1.0f + exp1(-g))) * u);
        }
    }
}

static void swiglu_work(job *j, int item) {
    const swiglu_job *s = (const swiglu_job *)j;
    int t0 = item * s->step, t1 = t0 + s->step < s->T ? t0 + s->step : s->T;
    if (s->bf16) swiglu_rows(s, 1, t0, t1); else swiglu_rows(s, 0, t0, t1);
}

EXPORT void sheaf_swiglu(program *program, const void *gate_up, void *y, int T, int I, int bf16, int threads) {
    int step = rows_at_once(4 * I);
    swiglu_job s = {.j = {.work = swiglu_work, .items = (T + step - 1) / step}, .gate_up = gate_up, .y = y, .T = T, .I = I,
                    .bf16 = bf16, .step = step};
    submit(program, &s.j, sizeof s, threads);
}

typedef struct {
    job j;
    char *qkv, *keys, *values;
    const float *cos, *sin;
    const int64_t *slots;
    size_t stride;
    int T, Q, K, D, block, bf16, step;
} rope_job;

INLINE void rope_rows(const rope_job *r, const int bf16, int t0, int t1) {
    const int D = r->D, half = D / 2, pair = bf16 ? 2 : 1;
    for (int t = t0; t < t1; t++) {
        const float *cos = r->cos + (size_t)t * half, *sin = r->sin + (size_t)t * half;
        size_t row = t * r->stride;
        for (int n = 0; n < r->Q + r->K; n++) {
            size_t a = row + (size_t)n * D, b = a + half;
            for (int d = 0; d < half; d++) {
                float x = load1(bf16, r->qkv, a + d), y = load1(bf16, r->qkv, b + d);
                store1(bf16, r->qkv, a + d, x * cos[d] - y * sin[d]);
                store1(bf16, r->qkv, b + d, y * cos[d] + x * sin[d]);
            }
        }
        size_t page = (size_t)(r->slots[t] / r->block), slot = (size_t)(r->slots[t] % r->block);
        for (int n = 0; n < r->K; n++) {
            size_t head = (page * r->K + n) * r->block * D;
            size_t key = row + (size_t)(r->Q + n) * D, value = row + (size_t)(r->Q + r->K + n) * D;
            size_t panel = head + slot / LANES * LANES * D + slot % LANES * pair;
            for (int d = 0; d < D; d++) {
                size_t at = panel + (size_t)(d / pair) * LANES * pair + d % pair;
                if (bf16) ((uint16_t *)r->keys)[at] = ((const uint16_t *)r->qkv)[key + d];
                else ((float *)r->keys)[at] = ((const float *)r->qkv)[key + d];
            }
            size_t to = head + slot / pair * pair * D + slot % pair;
            for (int d = 0; d < D; d++) {
                if (bf16) ((uint16_t *)r->values)[to + 2 * d] = ((const uint16_t *)r->qkv)[value + d];
                else ((float *)r->values)[to + d] = ((const float *)r->qkv)[value + d];
            }
        }
    }
}

static void rope_work(job *j, int item) {
    const rope_job *r = (const rope_job *)j;
    int t0 = item * r->step, t1 = t0 + r->step < r->T ? t0 + r->step : r->T;
    if (r->bf16) rope_rows(r, 1, t0, t1); else rope_rows(r, 0, t0, t1);
}

EXPORT void sheaf_rope_kv_write(program *program, void *qkv, long stride, const float *cos, const float *sin, const int64_t *slots,
                                void *keys, void *values, int T, int Q, int K, int D, int block, int bf16,
                                int threads) {
    int step = rows_at_once(4 * (Q + 2 * K) * D);
    rope_job r = {.j = {.work = rope_work, .items = (T + step - 1) / step}, .qkv = qkv, .keys = keys, .values = values,
                  .cos = cos, .sin = sin, .slots = slots, .stride = (size_t)stride, .T = T, .Q = Q, .K = K, .D = D,
                  .block = block, .bf16 = bf16, .step = step};
    submit(program, &r.j, sizeof r, threads);
}
