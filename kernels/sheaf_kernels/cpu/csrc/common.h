/* Vectors of sixteen floats in the compiler's own terms, so that one source serves AVX-512, AVX2 and NEON, and the
 * loop that shares work items among the threads. */
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
#define LANES 16
#define PANELS_AT_ONCE 2
/* Loops whose sums are to stay in registers. */
#define UNROLL _Pragma("GCC unroll 12")

/* Rows of x that meet a panel at once: as many as the registers hold sums. */
#if defined(__AVX512F__)
#define ROWS 12
#else
#define ROWS 4
#endif

typedef float v16 __attribute__((vector_size(64)));
typedef int32_t i16 __attribute__((vector_size(64)));
typedef uint32_t u16 __attribute__((vector_size(64)));
typedef uint16_t h16 __attribute__((vector_size(32)));

INLINE v16 load_f32(const float *p) { v16 v; memcpy(&v, p, sizeof v); return v; }
INLINE void store_f32(float *p, v16 v) { memcpy(p, &v, sizeof v); }
INLINE float widen(uint16_t b) { uint32_t u = (uint32_t)b << 16; float f; memcpy(&f, &u, 4); return f; }
INLINE v16 load_bf16(const uint16_t *p) {
    h16 h;
    memcpy(&h, p, sizeof h);
    return (v16)(__builtin_convertvector(h, u16) << 16);
}
/* To nearest, ties to even; NaN stays NaN. */
INLINE uint16_t narrow(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return f != f ? 0x7fc0 : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
INLINE void store_bf16(uint16_t *p, v16 v) {
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)v);
#else
    u16 u = (u16)v, r = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    u16 nan = (u16)(v != v);
    h16 h = __builtin_convertvector((r & ~nan) | (0x7fc0 & nan), h16);
#endif
    memcpy(p, &h, sizeof h);
}
/* `bf16` is a constant wherever these are used. */
INLINE v16 load(const int bf16, const void *p, size_t i) {
    return bf16 ? load_bf16((const uint16_t *)p + i) : load_f32((const float *)p + i);
}
INLINE void store(const int bf16, void *p, size_t i, v16 v) {
    if (bf16) store_bf16((uint16_t *)p + i, v); else store_f32((float *)p + i, v);
}
INLINE float load1(const int bf16, const void *p, size_t i) {
    return bf16 ? widen(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}
INLINE void store1(const int bf16, void *p, size_t i, float f) {
    if (bf16) ((uint16_t *)p)[i] = narrow(f); else ((float *)p)[i] = f;
}
INLINE float round1(const int bf16, float f) { return bf16 ? widen(narrow(f)) : f; }
INLINE v16 round16(const int bf16, v16 v) {
    if (!bf16) return v;
    uint16_t h[LANES];
    store_bf16(h, v);
    return load_bf16(h);
}
INLINE v16 select16(i16 mask, v16 yes, v16 no) { return (v16)(((i16)yes & mask) | ((i16)no & ~mask)); }
#if defined(__clang__)
#define UPPER(v, n) __builtin_shufflevector(v, v, n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7, 0, 0, 0, 0, 0, 0, 0, 0)
#else
#define UPPER(v, n) __builtin_shuffle(v, (i16){n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7})
#endif
INLINE float sum16(v16 v) {
    v += UPPER(v, 8);
    v += UPPER(v, 4);
    v += UPPER(v, 2);
    v += UPPER(v, 1);
    return v[0];
}
INLINE v16 greater16(v16 a, v16 b) { return select16(a > b, a, b); }
INLINE float max16(v16 v) {
    v = greater16(v, UPPER(v, 8));
    v = greater16(v, UPPER(v, 4));
    v = greater16(v, UPPER(v, 2));
    v = greater16(v, UPPER(v, 1));
    return v[0];
}
/* e^x within 2 units of the last place; 0 below -87, infinite above 88; NaN stays. */
INLINE v16 exp16(v16 x) {
    const v16 zero = {0};
    v16 c = select16(x > zero + 88.0f, zero + 88.0f, x);
    c = select16(c < zero - 87.0f, zero - 87.0f, c);
    v16 n = (c * 1.44269504f + 12582912.0f) - 12582912.0f; /* to the nearest integer */
    v16 f = c - n * 0.693359375f;
    f = f + n * 2.12194440e-4f;
    v16 y = zero + 1.9875691500e-4f;
    y = y * f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = (y * f) * f + f + 1.0f;
    i16 exponent = (__builtin_convertvector(n, i16) + 127) << 23;
    y = y * (v16)exponent;
    y = select16(x < zero - 87.0f, zero, y);
    y = select16(x > zero + 88.0f, zero + INFINITY, y);
    return select16(x != x, x, y);
}
INLINE float exp1(float x) { v16 v = {x}; return exp16(v)[0]; }

/* sums[i][j] = x row i times panel j, added up in the order of K: whatever else is computed beside a row, its
 * sums have the same bits. A panel is [K][16] in float32, [K/2][16][2] in bfloat16; K is even there. */
INLINE void rows_by_panels(const int bf16, const int rows, const void *x, size_t x_stride,
                           const void *w, long w_stride, int K, v16 sums[ROWS][PANELS_AT_ONCE]) {
    v16 s[ROWS][PANELS_AT_ONCE];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) s[i][j] = (v16){0};
    if (!bf16) {
        const float *xf = x, *wf = w;
        for (int k = 0; k < K; k++) {
            v16 p[PANELS_AT_ONCE];
            UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) p[j] = load_f32(wf + j * w_stride + (size_t)k * LANES);
            UNROLL for (int i = 0; i < rows; i++)
                UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) s[i][j] += xf[i * x_stride + k] * p[j];
        }
    } else {
        const uint16_t *xh = x, *wh = w;
        for (int k = 0; k < K; k += 2) {
            u16 p[PANELS_AT_ONCE];
            UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) memcpy(&p[j], wh + j * w_stride + (size_t)k * LANES, sizeof p[j]);
            /* Rows outside, so that one broadcast lives at a time and the sums keep the registers. */
            UNROLL for (int i = 0; i < rows; i++) {
#if defined(__AVX512BF16__)
                uint32_t pair;
                memcpy(&pair, xh + i * x_stride + k, 4);
                __m512bh both = (__m512bh)_mm512_set1_epi32((int)pair);
                UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++)
                    s[i][j] = (v16)_mm512_dpbf16_ps((__m512)s[i][j], both, (__m512bh)p[j]);
#else
                float even = widen(xh[i * x_stride + k]), odd = widen(xh[i * x_stride + k + 1]);
                UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) {
                    s[i][j] += even * (v16)(p[j] << 16);
                    s[i][j] += odd * (v16)(p[j] & 0xffff0000u);
                }
#endif
            }
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < PANELS_AT_ONCE; j++) sums[i][j] = s[i][j];
}

/* The same with the number of rows made a constant, so that the sums stay in registers. */
#define WITH_ROWS(n) case n: rows_by_panels(bf16, n, x, x_stride, w, w_stride, K, sums); break;
INLINE void multiply(const int bf16, int rows, const void *x, size_t x_stride, const void *w, long w_stride, int K,
                     v16 sums[ROWS][PANELS_AT_ONCE]) {
    switch (rows) {
        WITH_ROWS(1) WITH_ROWS(2) WITH_ROWS(3) WITH_ROWS(4)
#if ROWS == 12
        WITH_ROWS(5) WITH_ROWS(6) WITH_ROWS(7) WITH_ROWS(8) WITH_ROWS(9) WITH_ROWS(10) WITH_ROWS(11) WITH_ROWS(12)
#endif
    }
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
