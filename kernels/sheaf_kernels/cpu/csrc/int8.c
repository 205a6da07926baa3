/* y = x W^T + b with x in int8 and W in int8 or four bits; see int8.py and int4.py. */
#include "common.h"

/* Channels that have one scale in a row of x. */
#define GROUP 64
/* Rows of x that stay in the cache while panels pass by; a multiple of ROWS. */
#define ROW_BLOCK 240
/* What is smaller than this counts as zero: 127 / it must be finite. */
#define TINY 1e-30f

/* How x is multiplied. By bytes, where four of them meet four weights of one sign (int8 has 128 added to it, and
 * what that adds is taken off with `sum`); else by int16, of which a pair meets a pair of widened weights. Nothing
 * can saturate: 64 products of 128 * 128 are 2^20. */
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define WEIGHT_OFFSET 128
typedef int8_t small;
#else
#define WEIGHT_OFFSET 0
typedef int16_t small;
#endif

/* A group of a row of x. In int16 the quad (a, b, c, d) lies as (a, c, b, d). */
typedef struct {
    float scale;
    int32_t sum;
    small q[GROUP];
} quantized;

typedef struct {
    job j;
    const char *x;
    quantized *q;
    size_t x_stride;
    int T, K, groups, bf16, step;
} quantize_job;

INLINE void quantize_group(const int bf16, const void *x, size_t at, int count, quantized *out) {
    float values[GROUP];
    int i = 0;
    for (; i + LANES <= count; i += LANES) store_f32(values + i, load(bf16, x, at + i));
    for (; i < count; i++) values[i] = load1(bf16, x, at + i);
    for (; i < GROUP; i++) values[i] = 0.0f;
    ivec most = {0}; /* magnitudes by their bits: infinite and missing numbers are above all others */
    UNROLL for (int v = 0; v < GROUP; v += LANES) {
        ivec bits = (ivec)load_f32(values + v) & 0x7fffffff, more = bits > most;
        most = (bits & more) | (most & ~more);
    }
    int32_t largest = 0;
    UNROLL for (int v = 0; v < LANES; v++) largest = most[v] > largest ? most[v] : largest;
    float size;
    memcpy(&size, &largest, 4);
    const int finite = largest < 0x7f800000, some = finite && size > TINY;
    const float factor = some ? 127.0f / size : 0.0f;
    int32_t sum = 0, whole[GROUP];
    UNROLL for (int v = 0; v < GROUP; v += LANES) {
        /* To the nearest integer, ties to even: the lowest bits of a float of this size count ones. */
        vec magic = load_f32(values + v) * factor + 12582912.0f;
        ivec w = finite ? (ivec)magic - 0x4b400000 : (ivec){0};
        memcpy(whole + v, &w, sizeof w);
    }
    for (int k = 0; k < GROUP; k += 4)
        for (int n = 0; n < 4; n++) {
            sum += whole[k + n];
            out->q[k + (sizeof(small) == 2 ? (n & 1) << 1 | n >> 1 : n)] = (small)whole[k + n];
        }
    out->scale = finite ? (some ? size / 127.0f : 0.0f) : NAN;
    out->sum = sum;
}

static void quantize_work(job *j, int item) {
    const quantize_job *w = (const quantize_job *)j;
    int t0 = item * w->step, t1 = t0 + w->step < w->T ? t0 + w->step : w->T;
    for (int t = t0; t < t1; t++)
        for (int g = 0; g < w->groups; g++) {
            int left = w->K - g * GROUP, count = left < GROUP ? left : GROUP;
            size_t at = t * w->x_stride + (size_t)g * GROUP;
            quantized *out = w->q + (size_t)t * w->groups + g;
            if (w->bf16) quantize_group(1, w->x, at, count, out); else quantize_group(0, w->x, at, count, out);
        }
}

EXPORT int sheaf_int8_group_bytes(void) { return sizeof(quantized); }
EXPORT int sheaf_int8_offset(void) { return WEIGHT_OFFSET; }

/* q [T, ceil(K / GROUP)] groups of x [T, K]. */
EXPORT void sheaf_int8_quantize(program *program, const void *x, long x_stride, void *q, int T, int K, int bf16,
                                int threads) {
    int step = 8192 / K > 1 ? 8192 / K : 1;
    quantize_job w = {.j = {.work = quantize_work, .items = (T + step - 1) / step}, .x = x, .q = q,
                      .x_stride = (size_t)x_stride, .T = T, .K = K, .groups = (K + GROUP - 1) / GROUP, .bf16 = bf16,
                      .step = step};
    submit(program, &w.j, sizeof w, threads);
}

/* s[i][j] += the products of four of row i and of each lane's four weights, bytes, of panel j. */
INLINE void add_quads(const int rows, const quantized *x, size_t x_stride, int k, const ivec w[], ivec s[][PANELS_AT_ONCE]) {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
    UNROLL for (int i = 0; i < rows; i++) {
        int32_t quad;
        memcpy(&quad, x[i * x_stride].q + k, 4);
        UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++)
#if LANES == 16
            s[i][j] = (ivec)_mm512_dpbusd_epi32((__m512i)s[i][j], (__m512i)w[j], _mm512_set1_epi32(quad));
#else
            s[i][j] = (ivec)_mm256_dpbusd_avx_epi32((__m256i)s[i][j], (__m256i)w[j], _mm256_set1_epi32(quad));
#endif
    }
#else
    UNROLL for (int half = 0; half < 2; half++) { /* the even bytes of each pair, then the odd ones */
        ivec p[PANELS_AT_ONCE];
        UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) {
            typedef int16_t pairs __attribute__((vector_size(4 * LANES)));
            pairs both = (pairs)w[j];
            p[j] = (ivec)((half ? both : both << 8) >> 8);
        }
        UNROLL for (int i = 0; i < rows; i++) {
            int32_t pair;
            memcpy(&pair, x[i * x_stride].q + k + 2 * half, 4);
            UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++)
#if LANES == 16
                s[i][j] += (ivec)_mm512_madd_epi16((__m512i)p[j], _mm512_set1_epi32(pair));
#elif LANES == 8
                s[i][j] += (ivec)_mm256_madd_epi16((__m256i)p[j], _mm256_set1_epi32(pair));
#else
                s[i][j] += ((ivec)((uvec)p[j] << 16) >> 16) * (int16_t)pair + (p[j] >> 16) * (pair >> 16);
#endif
        }
    }
#endif
}

typedef struct {
    job j;
    const quantized *x;
    const char *w;
    const int8_t *zero; /* of four bits only */
    const float *scale;
    const char *bias;
    char *y;
    size_t y_stride;
    int M, N, groups, bf16, panels, step, parts;
} integer_job;

/* The integers of a group with which the sums of `rows` rows start: what the weights' offset or zero points take off. */
INLINE void start(const int bits, const int rows, const quantized *x, size_t x_stride, const int8_t *zero, long stride,
                  ivec s[][PANELS_AT_ONCE]) {
    typedef int8_t bytes __attribute__((vector_size(LANES)));
    UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) {
        ivec offset = (ivec){0} + WEIGHT_OFFSET;
        if (bits == 4) {
            bytes zeros;
            memcpy(&zeros, zero + j * stride, sizeof zeros);
            offset = __builtin_convertvector(zeros, ivec);
        }
        UNROLL for (int i = 0; i < rows; i++) s[i][j] = offset * -x[i * x_stride].sum;
    }
}

/* Rows by two panels: integers within a group, floats over groups in the order of K, whatever else is computed
 * beside a row. A vector of four bits holds two quads of each lane, the first in its bytes' lower halves. */
INLINE void integer_rows(const int bits, const integer_job *l, const int rows, int m, int p, int panels) {
    const int bytes = GROUP * LANES * bits / 8; /* of a group */
    const size_t panel = (size_t)l->groups * bytes, x_stride = (size_t)l->groups;
    const quantized *x = l->x + m * x_stride;
    const char *w = l->w + p * panel;
    const float *scale = l->scale + (size_t)p * l->groups * LANES;
    const int8_t *zero = bits == 4 ? l->zero + (size_t)p * l->groups * LANES : NULL;
    const long w_stride = panels == 1 ? 0 : (long)panel; /* a last one that has no neighbour is met twice */
    const long scale_stride = panels == 1 ? 0 : (long)l->groups * LANES;
    vec sums[ROWS][PANELS_AT_ONCE];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) sums[i][j] = (vec){0};
    for (int g = 0; g < l->groups; g++, x++, w += bytes, scale += LANES) {
        ivec s[ROWS][PANELS_AT_ONCE];
        start(bits, rows, x, x_stride, bits == 4 ? zero + (size_t)g * LANES : NULL, scale_stride, s);
        for (int k = 0; k < GROUP; k += 32 / bits) {
            ivec quads[PANELS_AT_ONCE];
            UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++)
                memcpy(&quads[j], w + j * w_stride + k * LANES * bits / 8, sizeof quads[j]);
            if (bits == 4) {
                ivec lower[PANELS_AT_ONCE];
                UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) {
                    lower[j] = quads[j] & 0x0f0f0f0f;
                    quads[j] = (quads[j] >> 4) & 0x0f0f0f0f;
                }
                add_quads(rows, x, x_stride, k, lower, s);
            }
            add_quads(rows, x, x_stride, bits == 4 ? k + 4 : k, quads, s);
        }
        vec scales[PANELS_AT_ONCE];
        UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) scales[j] = load_f32(scale + j * scale_stride);
        UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++)
                sums[i][j] += __builtin_convertvector(s[i][j], vec) * (scales[j] * x[i * x_stride].scale);
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < panels; j++) {
            if (l->bf16) put(1, l->y, l->y_stride, l->bias, l->N, m + i, p + j, sums[i][j]);
            else put(0, l->y, l->y_stride, l->bias, l->N, m + i, p + j, sums[i][j]);
        }
}

#define INTEGER_ROWS(n) case n: integer_rows(bits, l, n, m, p, panels); break;
INLINE void integer_work(const int bits, const integer_job *l, int item) {
    int m0 = item / l->parts * ROW_BLOCK, p0 = item % l->parts * l->step;
    int m1 = m0 + ROW_BLOCK < l->M ? m0 + ROW_BLOCK : l->M, p1 = p0 + l->step < l->panels ? p0 + l->step : l->panels;
    for (int p = p0; p < p1; p += PANELS_AT_ONCE) {
        int panels = p1 - p < PANELS_AT_ONCE ? p1 - p : PANELS_AT_ONCE;
        for (int m = m0, passes = (m1 - m0 + ROWS - 1) / ROWS, rows; m < m1; m += rows, passes--) {
            rows = (m1 - m + passes - 1) / passes;
            switch (rows) {
                INTEGER_ROWS(1) INTEGER_ROWS(2) INTEGER_ROWS(3) INTEGER_ROWS(4) INTEGER_ROWS(5) INTEGER_ROWS(6)
#if ROWS == 12
                INTEGER_ROWS(7) INTEGER_ROWS(8) INTEGER_ROWS(9) INTEGER_ROWS(10) INTEGER_ROWS(11) INTEGER_ROWS(12)
#endif
            }
        }
    }
}

static void int8_work(job *j, int item) { integer_work(8, (const integer_job *)j, item); }
static void int4_work(job *j, int item) { integer_work(4, (const integer_job *)j, item); }

/* x: M rows of sheaf_int8_quantize; w [ceil(N / LANES), K / 4, LANES, 4] with K a multiple of GROUP, which
 * sheaf_int8_offset has been added to; or with `zero` [ceil(N / LANES), K / GROUP, LANES] four bits each,
 * [ceil(N / LANES), K / 8, LANES, 4]; scale [ceil(N / LANES), K / GROUP, LANES]; bias [N], like y, or NULL. */
EXPORT void sheaf_integer_linear(program *program, const void *x, const void *w, const void *zero, const void *scale,
                                 const void *bias, void *y, long y_stride, int M, int N, int K, int bf16, int threads) {
    int panels = (N + LANES - 1) / LANES, blocks = (M + ROW_BLOCK - 1) / ROW_BLOCK;
    /* About eight items for each thread; none smaller than two panels. */
    int step = panels * blocks / (8 * threads) & ~1;
    if (step < 2) step = 2;
    if (step > panels) step = panels;
    int parts = (panels + step - 1) / step;
    integer_job l = {.j = {.work = zero ? int4_work : int8_work, .items = parts * blocks}, .x = x, .w = w, .zero = zero,
                     .scale = scale, .bias = bias, .y = y, .y_stride = (size_t)y_stride, .M = M, .N = N,
                     .groups = K / GROUP, .bf16 = bf16, .panels = panels, .step = step, .parts = parts};
    submit(program, &l.j, sizeof l, (long)N * K * M < 1 << 15 ? 1 : threads);
}
