/* y = x W^T + b over packed panels of LANES output channels; see linear.py. */
#include "common.h"

/* Rows of x that stay in the cache while panels pass by; a multiple of ROWS and of 16. */
#define ROW_BLOCK 240

typedef struct {
    job j;
    const char *x, *w, *bias;
    char *y;
    size_t x_stride, y_stride;
    int M, N, K, bf16, panels, step, groups;
} linear_job;

INLINE void vector_block(const linear_job *l, const int bf16, int m0, int m1, int p0, int p1) {
    const size_t size = bf16 ? 2 : 4, x_size = bf16 ? sizeof(factor) : 4, panel = (size_t)l->K * LANES;
    for (int p = p0; p < p1; p += PANELS_AT_ONCE) {
        int panels = p1 - p < PANELS_AT_ONCE ? p1 - p : PANELS_AT_ONCE;
        for (int m = m0, passes = (m1 - m0 + ROWS - 1) / ROWS, rows; m < m1; m += rows, passes--) {
            rows = (m1 - m + passes - 1) / passes; /* 16 are 8 and 8, for 12 and 4 would leave sums idle */
            float sums[ROWS * PANELS_AT_ONCE * LANES];
            /* A last one that has no neighbour is met twice. */
            multiply(bf16, rows, l->x + m * l->x_stride * x_size, l->x_stride, l->w + p * panel * size,
                     panels == 1 ? 0 : (long)panel, l->K, sums, PANELS_AT_ONCE * LANES);
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < panels; j++)
                    put(bf16, l->y, l->y_stride, l->bias, l->N, m + i, p + j,
                        load_f32(sums + (i * PANELS_AT_ONCE + j) * LANES));
        }
    }
}

#if defined(__AMX_BF16__)
/* Tiles of the matrix unit: sums 0 to 3 (two of rows by two panels), x 4 and 5, panels 6 and 7. */
INLINE void configure(int rows) {
    struct { uint8_t palette, start, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } c
        __attribute__((aligned(64))) = {.palette = 1};
    int first = rows < 16 ? rows : 16, second = rows > 16 ? rows - 16 : 1;
    const int of[8] = {first, first, second, second, first, second, 16, 16};
    for (int t = 0; t < 8; t++) { c.bytes[t] = 64; c.rows[t] = (uint8_t)of[t]; }
    __asm__ volatile("" : : "m"(c)); /* all of it is read, which not every compiler knows (llama.cpp#26954) */
    _tile_loadconfig(&c);
}

static void leave_tiles(void) { _tile_release(); }

static void tile_block(const linear_job *l, int m0, int m1, int p0, int p1) {
    const uint16_t *w = (const uint16_t *)l->w;
    const size_t panel = (size_t)l->K * LANES, bytes = l->x_stride * 2;
    int configured = 0;
    for (int p = p0; p < p1; p += 2) {
        const uint16_t *first = w + p * panel, *second = p + 1 < p1 ? first + panel : first;
        for (int m = m0; m < m1; m += 32) {
            int rows = m1 - m < 32 ? m1 - m : 32;
            if (rows != configured) { configure(rows); configured = rows; }
            const uint16_t *x = (const uint16_t *)l->x + m * l->x_stride, *below = x + 16 * l->x_stride;
            float sums[4][16][16];
            _tile_zero(0); _tile_zero(1);
            if (rows > 16) {
                _tile_zero(2); _tile_zero(3);
                for (int k = 0; k < l->K; k += 32) {
                    _tile_loadd(4, x + k, bytes);
                    _tile_loadd(6, first + k * LANES, 64);
                    _tile_loadd(5, below + k, bytes);
                    _tile_loadd(7, second + k * LANES, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_dpbf16ps(3, 5, 7);
                }
                _tile_stored(2, sums[2], 64);
                _tile_stored(3, sums[3], 64);
            } else {
                for (int k = 0; k < l->K; k += 32) {
                    _tile_loadd(4, x + k, bytes);
                    _tile_loadd(6, first + k * LANES, 64);
                    _tile_loadd(7, second + k * LANES, 64);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_dpbf16ps(1, 4, 7);
                }
            }
            _tile_stored(0, sums[0], 64);
            _tile_stored(1, sums[1], 64);
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < 2 && p + j < p1; j++)
                    put(1, l->y, l->y_stride, l->bias, l->N, m + i, p + j, load_f32(sums[2 * (i / 16) + j][i % 16]));
        }
    }
}
#endif

static void linear_work(job *j, int item) {
    const linear_job *l = (const linear_job *)j;
    int m0 = item / l->groups * ROW_BLOCK, p0 = item % l->groups * l->step;
    int m1 = m0 + ROW_BLOCK < l->M ? m0 + ROW_BLOCK : l->M, p1 = p0 + l->step < l->panels ? p0 + l->step : l->panels;
#if defined(__AMX_BF16__)
    if (l->bf16 && l->K % 32 == 0) { tile_block(l, m0, m1, p0, p1); return; }
#endif
    if (l->bf16) vector_block(l, 1, m0, m1, p0, p1); else vector_block(l, 0, m0, m1, p0, p1);
}

/* Of every kernel: program NULL runs it now. x [M, K], in factors for bfloat16, and y [M, N] by rows with strides in elements; w [ceil(N / LANES)] panels, zero behind N; bias [N] or NULL. */
EXPORT void sheaf_linear(program *program, const void *x, long x_stride, const void *w, const void *bias, void *y, long y_stride, int M,
                         int N, int K, int bf16, int threads) {
    int panels = (N + LANES - 1) / LANES, blocks = (M + ROW_BLOCK - 1) / ROW_BLOCK;
    /* About eight items for each thread; none smaller than two panels. */
    int step = panels * blocks / (8 * threads) & ~1;
    if (step < 2) step = 2;
    if (step > panels) step = panels;
    int groups = (panels + step - 1) / step;
    linear_job l = {.j = {.work = linear_work, .items = groups * blocks}, .x = x, .w = w, .bias = bias, .y = y,
                    .x_stride = (size_t)x_stride, .y_stride = (size_t)y_stride, .M = M, .N = N, .K = K, .bf16 = bf16,
                    .panels = panels, .step = step, .groups = groups};
#if defined(__AMX_BF16__)
    if (bf16 && K % 32 == 0) l.j.leave = leave_tiles;
#endif
    submit(program, &l.j, sizeof l, (long)N * K * M < 1 << 15 ? 1 : threads);
}

EXPORT int sheaf_lanes(void) { return LANES; }

/* Whether factors of bfloat16 are float32: see sheaf_widen. */
EXPORT int sheaf_widens(void) { return WIDENS; }

/* Whether this process may use the matrix unit; Linux wants to be asked first. */
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
EXPORT int sheaf_ask_for_tiles(void) { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }
#else
EXPORT int sheaf_ask_for_tiles(void) { return 1; }
#endif
