/* What is done to one row by itself: norms, the gated activation, rotation with the write into the pages. */
#include "common.h"

typedef struct {
    job j;
    const char *x, *residual, *weight;
    char *y, *h;
    size_t x_stride, residual_stride;
    float eps;
    int T, H, C, bf16, wide, step; /* T rows of H vectors of C; with heads in place */
} norm_job;

INLINE void norm_rows(const norm_job *n, const int bf16, int t0, int t1) {
    const int C = n->C, full = C & ~(LANES - 1);
    for (int t = t0; t < t1; t++) {
        size_t in = t / n->H * n->x_stride + (size_t)(t % n->H) * C, res = t * n->residual_stride;
        size_t out = n->y == n->x ? in : (size_t)t * C;
        const char *h = n->x;
        size_t at = in;
        vec squares = {0};
        float rest = 0.0f;
        if (n->residual) {
            for (int c = 0; c < full; c += LANES) {
                vec v = round_vec(bf16, load(bf16, n->x, in + c) + load(bf16, n->residual, res + c));
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
            for (int c = 0; c < full; c += LANES) { vec v = load(bf16, h, at + c); squares += v * v; }
            for (int c = full; c < C; c++) { float v = load1(bf16, h, at + c); rest += v * v; }
        }
        float scale = 1.0f / sqrtf((sum_vec(squares) + rest) / C + n->eps);
        for (int c = 0; c < full; c += LANES) {
            vec v = load(bf16, h, at + c) * scale;
            vec w = n->wide ? load_f32((const float *)n->weight + c) : load(bf16, n->weight, c);
            store(bf16, n->y, out + c, (n->wide ? v : round_vec(bf16, v)) * w);
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
    int t0 = item * n->step, t1 = t0 + n->step < n->T * n->H ? t0 + n->step : n->T * n->H;
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
                  .eps = eps, .T = T, .H = 1, .C = C, .bf16 = bf16, .wide = wide, .step = step};
    submit(program, &n.j, sizeof n, threads);
}

/* In place: H vectors of C, one behind the other, in each of T rows. */
EXPORT void sheaf_head_norm(program *program, void *x, long stride, const void *weight, float eps, int T, int H, int C,
                            int bf16, int wide, int threads) {
    int step = rows_at_once(C);
    norm_job n = {.j = {.work = norm_work, .items = (T * H + step - 1) / step}, .x = x, .weight = weight, .y = x,
                  .x_stride = (size_t)stride, .eps = eps, .T = T, .H = H, .C = C, .bf16 = bf16, .wide = wide,
                  .step = step};
    submit(program, &n.j, sizeof n, threads);
}

typedef struct {
    job j;
    const uint16_t *x;
    float *y;
    size_t x_stride;
    int T, C, step;
} widen_job;

static void widen_work(job *j, int item) {
    const widen_job *w = (const widen_job *)j;
    int t0 = item * w->step, t1 = t0 + w->step < w->T ? t0 + w->step : w->T;
    for (int t = t0; t < t1; t++) {
        const uint16_t *x = w->x + t * w->x_stride;
        float *y = w->y + (size_t)t * w->C;
        int c = 0;
        for (; c + LANES <= w->C; c += LANES) store_f32(y + c, load_bf16(x + c));
        for (; c < w->C; c++) y[c] = widen(x[c]);
    }
}

/* y [T, C] in float32 from bfloat16. */
EXPORT void sheaf_widen(program *program, const void *x, long x_stride, void *y, int T, int C, int threads) {
    int step = rows_at_once(C);
    widen_job w = {.j = {.work = widen_work, .items = (T + step - 1) / step}, .x = x, .y = y,
                   .x_stride = (size_t)x_stride, .T = T, .C = C, .step = step};
    submit(program, &w.j, sizeof w, threads);
}

enum { SILU, GELU, GELU_TANH, CLAMPED };

typedef struct {
    job j;
    const char *x;
    char *y;
    float alpha, limit;
    int T, I, kind, gated, bf16, step;
} act_job;

/* Within 2e-7: Abramowitz and Stegun, 7.1.26. */
INLINE vec erf_vec(vec x) {
    vec size = select_vec(x < 0.0f, -x, x), t = 1.0f / (1.0f + 0.3275911f * size);
    vec p = ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    vec y = 1.0f - p * exp_vec(-size * size);
    return select_vec(x < 0.0f, -y, y);
}

INLINE vec act_vec(const int kind, vec x) {
    if (kind == SILU) return x / (1.0f + exp_vec(-x));
    if (kind == GELU) return x * 0.5f * (1.0f + erf_vec(x * 0.70710678f));
    vec u = x * (1.0f + 0.044715f * x * x) * 0.79788456f;
    return x / (1.0f + exp_vec(-2.0f * u)); /* (1 + tanh u) / 2 = 1 / (1 + e^-2u) */
}

/* GPT-OSS's: gates and ups take turns, both are bounded, and one is added to up. */
INLINE vec clamped_vec(const act_job *a, const int bf16, vec gate, vec up) {
    vec limit = (vec){0} + a->limit;
    gate = select_vec(gate > limit, limit, gate);
    up = select_vec(up > limit, limit, up);
    up = select_vec(up < -limit, -limit, up);
    vec sigmoid = round_vec(bf16, 1.0f / (1.0f + exp_vec(-round_vec(bf16, gate * a->alpha))));
    return round_vec(bf16, gate * sigmoid) * round_vec(bf16, up + 1.0f);
}

INLINE void act_rows(const act_job *a, const int bf16, const int kind, int t0, int t1) {
    const int I = a->I, pairs = kind == CLAMPED, width = a->gated ? 2 * I : I;
    for (int t = t0; t < t1; t++)
        for (int c = 0; c < I; c += LANES) {
            size_t in = (size_t)t * width + (pairs ? 2 * c : c), out = (size_t)t * I + c;
            int count = I - c < LANES ? I - c : LANES;
            vec x = {0}, up = {0}, y;
            if (pairs || count < LANES) {
                float xs[LANES] = {0}, ups[LANES] = {0};
                for (int i = 0; i < count; i++) {
                    xs[i] = load1(bf16, a->x, in + (pairs ? 2 * i : i));
                    if (a->gated) ups[i] = load1(bf16, a->x, in + (pairs ? 2 * i + 1 : I + i));
                }
                x = load_f32(xs), up = load_f32(ups);
            } else {
                x = load(bf16, a->x, in);
                if (a->gated) up = load(bf16, a->x, in + I);
            }
            if (pairs) y = clamped_vec(a, bf16, x, up);
            else y = a->gated ? round_vec(bf16, act_vec(kind, x)) * up : act_vec(kind, x);
            if (count == LANES) store(bf16, a->y, out, y);
            else for (int i = 0; i < count; i++) store1(bf16, a->y, out + i, y[i]);
        }
}

#define ACT_OF(n) case n: if (a->bf16) act_rows(a, 1, n, t0, t1); else act_rows(a, 0, n, t0, t1); break;
static void act_work(job *j, int item) {
    const act_job *a = (const act_job *)j;
    int t0 = item * a->step, t1 = t0 + a->step < a->T ? t0 + a->step : a->T;
    switch (a->kind) { ACT_OF(SILU) ACT_OF(GELU) ACT_OF(GELU_TANH) ACT_OF(CLAMPED) }
}

/* x [T, 2I] with the gate first, or by turns where it is CLAMPED; [T, I] without a gate. */
EXPORT void sheaf_activate(program *program, const void *x, void *y, int T, int I, int kind, int gated, float alpha,
                           float limit, int bf16, int threads) {
    int step = rows_at_once(4 * I);
    act_job a = {.j = {.work = act_work, .items = (T + step - 1) / step}, .x = x, .y = y, .alpha = alpha,
                 .limit = limit, .T = T, .I = I, .kind = kind, .gated = gated, .bf16 = bf16, .step = step};
    submit(program, &a.j, sizeof a, threads);
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
            int d = 0;
            for (; d + LANES <= half; d += LANES) {
                vec x = load(bf16, r->qkv, a + d), y = load(bf16, r->qkv, b + d);
                vec c = load_f32(cos + d), s = load_f32(sin + d);
                store(bf16, r->qkv, a + d, x * c - y * s);
                store(bf16, r->qkv, b + d, y * c + x * s);
            }
            for (; d < half; d++) {
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
