/* Vectors of the machine's own width in the compiler's own terms, so that one source serves AVX-512, AVX2 and NEON:
 * wider ones than the machine has would live in memory. And the loop that shares work items among the threads. */
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT __attribute__((visibility("default")))
#define PANELS_AT_ONCE 2
/* Loops whose sums are to stay in registers. */
#define UNROLL _Pragma("GCC unroll 12")

/* Floats of a vector; and the rows of x that meet two panels at once: as many as the registers hold sums. */
#if defined(__AVX512F__)
#define LANES 16
#define ROWS 12
#elif defined(__AVX2__)
#define LANES 8
#define ROWS 6
#else
#define LANES 4
#define ROWS 12
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES)));
typedef uint16_t hvec __attribute__((vector_size(2 * LANES)));

#if LANES == 16
#define LANE_NUMBERS {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
#elif LANES == 8
#define LANE_NUMBERS {0, 1, 2, 3, 4, 5, 6, 7}
#else
#define LANE_NUMBERS {0, 1, 2, 3}
#endif

INLINE vec load_f32(const float *p) { vec v; memcpy(&v, p, sizeof v); return v; }
INLINE void store_f32(float *p, vec v) { memcpy(p, &v, sizeof v); }
INLINE float widen(uint16_t b) { uint32_t u = (uint32_t)b << 16; float f; memcpy(&f, &u, 4); return f; }
INLINE vec load_bf16(const uint16_t *p) {
    hvec h;
    memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, uvec) << 16);
}
/* To nearest, ties to even; NaN stays NaN. */
INLINE uint16_t narrow(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return f != f ? 0x7fc0 : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
#if !defined(__AVX512BF16__)
/* The nearest bfloat16 of each lane, in its upper half. */
INLINE uvec nearest(vec v) {
    uvec u = (uvec)v, r = u + 0x7fff + ((u >> 16) & 1), nan = (uvec)(v != v);
    return ((r & ~nan) | (0x7fc00000 & nan)) & 0xffff0000u;
}
#endif
INLINE void store_bf16(uint16_t *p, vec v) {
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
    hvec h = __builtin_convertvector(nearest(v) >> 16, hvec);
#endif
    memcpy(p, &h, sizeof h);
}
/* `bf16` is a constant wherever these are used. */
INLINE vec load(const int bf16, const void *p, size_t i) {
    return bf16 ? load_bf16((const uint16_t *)p + i) : load_f32((const float *)p + i);
}
INLINE void store(const int bf16, void *p, size_t i, vec v) {
    if (bf16) store_bf16((uint16_t *)p + i, v); else store_f32((float *)p + i, v);
}
INLINE float load1(const int bf16, const void *p, size_t i) {
    return bf16 ? widen(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}
INLINE void store1(const int bf16, void *p, size_t i, float f) {
    if (bf16) ((uint16_t *)p)[i] = narrow(f); else ((float *)p)[i] = f;
}
INLINE float round1(const int bf16, float f) { return bf16 ? widen(narrow(f)) : f; }
INLINE vec round_vec(const int bf16, vec v) {
    if (!bf16) return v;
#if defined(__AVX512BF16__)
    uint16_t h[LANES];
    store_bf16(h, v);
    return load_bf16(h);
#else
    return (vec)nearest(v);
#endif
}
INLINE vec select_vec(ivec mask, vec yes, vec no) { return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask)); }
/* Lanes from n on come first. */
INLINE vec upper(vec v, const int n) {
#if defined(__clang__) && LANES == 16
    return n == 8 ? __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
         : n == 4 ? __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
         : n == 2 ? __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
                  : __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif defined(__clang__) && LANES == 8
    return n == 4 ? __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3)
         : n == 2 ? __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5)
                  : __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
#elif defined(__clang__)
    return n == 2 ? __builtin_shufflevector(v, v, 2, 3, 0, 1) : __builtin_shufflevector(v, v, 1, 0, 3, 2);
#else
    const ivec lane = LANE_NUMBERS;
    return __builtin_shuffle(v, lane ^ n);
#endif
}
INLINE float sum_vec(vec v) {
    UNROLL for (int n = LANES / 2; n; n /= 2) v += upper(v, n);
    return v[0];
}
INLINE vec greater_vec(vec a, vec b) { return select_vec(a > b, a, b); }
INLINE float max_vec(vec v) {
    UNROLL for (int n = LANES / 2; n; n /= 2) v = greater_vec(v, upper(v, n));
    return v[0];
}
/* e^x for x of -87 to 88. */
INLINE vec exp_within(vec c) {
    vec n = (c * 1.44269504f + 12582912.0f) - 12582912.0f; /* to the nearest integer */
    vec f = c - n * 0.693359375f;
    f = f + n * 2.12194440e-4f;
    vec y = (vec){0} + 1.9875691500e-4f;
    y = y * f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = (y * f) * f + f + 1.0f;
    ivec exponent = (__builtin_convertvector(n, ivec) + 127) << 23;
    return y * (vec)exponent;
}
/* e^x within 2 units of the last place; 0 below -87, infinite above 88; NaN stays. */
INLINE vec exp_vec(vec x) {
    const vec zero = {0};
    vec c = select_vec(x > zero + 88.0f, zero + 88.0f, x);
    c = select_vec(c < zero - 87.0f, zero - 87.0f, c);
    vec y = exp_within(c);
    y = select_vec(x < zero - 87.0f, zero, y);
    y = select_vec(x > zero + 88.0f, zero + INFINITY, y);
    return select_vec(x != x, x, y);
}
/* The same for what is not above 0. */
INLINE vec exp_below(vec x) {
    const vec zero = {0};
    return select_vec(x < zero - 87.0f, zero, exp_within(select_vec(x < zero - 87.0f, zero - 87.0f, x)));
}
INLINE float exp1(float x) { vec v = {x}; return exp_vec(v)[0]; }

/* What a row of bfloat16 is multiplied from: its pairs where the machine multiplies these, else float32, which a row
 * is made of once and not at each panel that it meets. */
#if defined(__AVX512BF16__)
typedef uint16_t factor;
#else
typedef float factor;
#endif
#define WIDENS (sizeof(factor) == 4)

/* s[i][j] += both products of a pair of bfloat16 in row i of x and in each lane of p[j]: the first, then the second.
 * Rows are the outer loop, so that one broadcast lives at a time and the sums keep the registers. */
INLINE void add_pairs(const int rows, const int vectors, const factor *x, size_t x_stride, const uvec *p,
                      vec s[][PANELS_AT_ONCE]) {
#if defined(__AVX512BF16__)
    UNROLL for (int i = 0; i < rows; i++) {
        uint32_t pair;
        memcpy(&pair, x + i * x_stride, 4);
        __m512bh both = (__m512bh)_mm512_set1_epi32((int)pair);
        UNROLL for (int j = 0; j < vectors; j++)
            s[i][j] = (vec)_mm512_dpbf16_ps((__m512)s[i][j], both, (__m512bh)p[j]);
    }
#else
    vec w[PANELS_AT_ONCE];
    UNROLL for (int j = 0; j < vectors; j++) w[j] = (vec)(p[j] << 16);
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) s[i][j] += x[i * x_stride] * w[j];
    UNROLL for (int j = 0; j < vectors; j++) w[j] = (vec)(p[j] & 0xffff0000u);
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) s[i][j] += x[i * x_stride + 1] * w[j];
#endif
}

/* The LANES floats at sums + i * stride + j * LANES = x row i times panel j, added up in the order of K: whatever else
 * is computed beside a row, its sums have the same bits. A panel is [K][LANES] in float32, [K/2][LANES][2] in
 * bfloat16, where x has factors and K is even. */
INLINE void rows_by_panels(const int bf16, const int rows, const void *x, size_t x_stride,
                           const void *w, long w_stride, int K, float *sums, size_t stride) {
    vec s[ROWS][PANELS_AT_ONCE];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) s[i][j] = (vec){0};
    if (!bf16) {
        const float *xf = x, *wf = w;
        for (int k = 0; k < K; k++) {
            vec p[PANELS_AT_ONCE];
            UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) p[j] = load_f32(wf + j * w_stride + (size_t)k * LANES);
            UNROLL for (int i = 0; i < rows; i++)
                UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) s[i][j] += xf[i * x_stride + k] * p[j];
        }
    } else {
        const factor *xh = x;
        const uint16_t *wh = w;
        for (int k = 0; k < K; k += 2) {
            uvec p[PANELS_AT_ONCE];
            UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) memcpy(&p[j], wh + j * w_stride + (size_t)k * LANES, sizeof p[j]);
            add_pairs(rows, PANELS_AT_ONCE, xh + k, x_stride, p, s);
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) store_f32(sums + i * stride + j * LANES, s[i][j]);
}

/* The same with the number of rows made a constant, so that the sums stay in registers. */
#define WITH_ROWS(n) case n: rows_by_panels(bf16, n, x, x_stride, w, w_stride, K, sums, stride); break;
INLINE void multiply(const int bf16, int rows, const void *x, size_t x_stride, const void *w, long w_stride, int K,
                     float *sums, size_t stride) {
    switch (rows) {
        WITH_ROWS(1) WITH_ROWS(2) WITH_ROWS(3) WITH_ROWS(4) WITH_ROWS(5) WITH_ROWS(6)
#if ROWS == 12
        WITH_ROWS(7) WITH_ROWS(8) WITH_ROWS(9) WITH_ROWS(10) WITH_ROWS(11) WITH_ROWS(12)
#endif
    }
}

/* y[row, a panel's channels] = sums and their bias, or NULL; of the N channels the last panel may have fewer. */
INLINE void put(const int bf16, char *y, size_t y_stride, const char *bias, int N, int row, int panel, vec sums) {
    int column = panel * LANES, left = N - column;
    size_t at = row * y_stride + column;
    if (left >= LANES) {
        if (bias) sums += load(bf16, bias, column);
        store(bf16, y, at, sums);
        return;
    }
    for (int c = 0; c < left; c++)
        store1(bf16, y, at + c, sums[c] + (bias ? load1(bf16, bias, column + c) : 0.0f));
}

/* A job is a struct that begins with this. Threads take items one after the other until there are none, so that a
 * thread which another process holds up costs one item, not its share. */
typedef struct job {
    void (*work)(struct job *, int item);
    int (*count)(struct job *); /* how many items, where that is another number each time; or NULL */
    void (*leave)(void);        /* each thread's last act, or NULL */
    int items, next, done;
} job;

/* Jobs in their order, kept to be run again; see program.py. */
typedef struct program program;

/* Run it now, on so many threads; with a program: keep a copy of its `size` bytes for every run of that. */
void submit(program *p, job *j, size_t size, int threads);
