/* The kernels against sums in double, in a program that needs neither Python nor torch: what runs it may be an
 * emulator. Prints each check's largest error, and fails where one is above its bound. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { L = 4, GROUP = 64 };

/* As in csrc. */
typedef struct {
    const int32_t *table;
    const int64_t *query_start, *context_len;
    const int *items;
    float *partials;
    long table_stride;
    int count, window;
} plan;
int sheaf_lanes(void);
int sheaf_int8_offset(void);
int sheaf_int8_group_bytes(void);
void sheaf_linear(void *, const void *, long, const void *, const void *, void *, long, int, int, int, int, int);
void sheaf_rms_norm(void *, const void *, long, const void *, long, const void *, void *, void *, float, int, int,
                    int, int, int);
void sheaf_int8_quantize(void *, const void *, long, void *, int, int, int, int);
void sheaf_integer_linear(void *, const void *, const void *, const void *, const void *, const void *, void *, long,
                          int, int, int, int, int);
int sheaf_attention_items(const int64_t *, const int64_t *, int, int, int, int, int, int *, int);
long sheaf_attention_scratch(const int *, int, int, int);
void sheaf_paged_attention(void *, const void *, long, const void *, const void *, const plan *, const void *, void *,
                           int, int, int, int, float, float, int, int);

static int failed;
static void say(const char *check, double error, double bound) {
    printf("%s: %g of %g\n", check, error, bound);
    failed |= !(error <= bound);
}
static float number(void) { return (float)rand() / (float)RAND_MAX * 2 - 1; }
static float *numbers(int count) {
    float *made = malloc(sizeof(float) * (size_t)count);
    for (int i = 0; i < count; i++) made[i] = number();
    return made;
}

enum { M = 29, N = 37, K = 150, PANELS = (N + L - 1) / L, PADDED = (K + GROUP - 1) / GROUP * GROUP };

static void check_linear(void) {
    float *x = numbers(M * K), *weight = numbers(N * K), *bias = numbers(N), y[M * N], *panels = calloc(PANELS * L * K, 4);
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) panels[(n / L * K + k) * L + n % L] = weight[n * K + k];
    sheaf_linear(NULL, x, K, panels, bias, y, N, M, N, K, 0, 1);
    double error = 0;
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            double sum = bias[n];
            for (int k = 0; k < K; k++) sum += (double)x[m * K + k] * weight[n * K + k];
            error = fmax(error, fabs(sum - y[m * N + n]));
        }
    say("linear", error, 2e-5);
}

/* Groups whose scale is 1: exact. In four bits a byte has weight 8k + i below and 8k + 4 + i above. */
static void check_integers(const char *check, int bits) {
    float x[M * K], y[M * N], scales[PANELS * L * PADDED / GROUP];
    int8_t weight[N * K], zeros[PANELS * L * PADDED / GROUP], *panels = calloc(PANELS * L * PADDED, 1);
    for (size_t i = 0; i < sizeof zeros; i++) zeros[i] = (int8_t)(i * 5 % 17);
    for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) scales[i] = 1;
    for (int i = 0; i < M * K; i++) x[i] = (float)(i % K % GROUP ? rand() % 255 - 127 : 127);
    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) {
            if (bits == 8) {
                weight[n * K + k] = (int8_t)(rand() % 256 - 128);
                panels[((n / L * (PADDED / 4) + k / 4) * L + n % L) * 4 + k % 4] = weight[n * K + k];
            } else {
                int step = rand() % 16, zero = zeros[(n / L * (PADDED / GROUP) + k / GROUP) * L + n % L];
                weight[n * K + k] = (int8_t)(step - zero);
                int8_t *pair = &panels[((n / L * (PADDED / 8) + k / 8) * L + n % L) * 4 + k % 4];
                *pair = (int8_t)(*pair | step << (k % 8 < 4 ? 0 : 4));
            }
        }
    void *quantized = malloc((size_t)(M * PADDED / GROUP * sheaf_int8_group_bytes()));
    sheaf_int8_quantize(NULL, x, K, quantized, M, K, 0, 1);
    sheaf_integer_linear(NULL, quantized, panels, bits == 8 ? NULL : zeros, scales, NULL, y, N, M, N, PADDED, 0, 1);
    double error = 0;
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int k = 0; k < K; k++) sum += (double)x[m * K + k] * weight[n * K + k];
            error = fmax(error, fabs(sum - y[m * N + n]));
        }
    say(check, error, 0);
}

static void check_norm(void) {
    float *x = numbers(M * N), *residual = numbers(M * N), *weight = numbers(N), y[M * N], h[M * N];
    sheaf_rms_norm(NULL, x, N, residual, N, weight, y, h, 1e-5f, M, N, 0, 0, 1);
    double error = 0;
    for (int m = 0; m < M; m++) {
        double squares = 0;
        for (int n = 0; n < N; n++) squares += pow((double)x[m * N + n] + residual[m * N + n], 2);
        for (int n = 0; n < N; n++) {
            double wanted = ((double)x[m * N + n] + residual[m * N + n]) / sqrt(squares / N + 1e-5) * weight[n];
            error = fmax(error, fabs(wanted - y[m * N + n]));
        }
    }
    say("norm", error, 1e-6);
}

/* The last `T` tokens of a context in pages that lie backwards; one token's chunks are merged. */
static void check_attention(const char *name, int T) {
    enum { C = 1100, D = 32, B = 16, Q = 3, PAGES = (C + B - 1) / B };
    float *keys = numbers(C * D), *values = numbers(C * D), *q = numbers(T * Q * D), *out = numbers(T * Q * D);
    float *key_pages = calloc((PAGES + 1) * B * D, 4), *value_pages = calloc((PAGES + 1) * B * D, 4);
    int32_t table[PAGES];
    for (int page = 0; page < PAGES; page++) table[page] = PAGES - page;
    for (int s = 0; s < C; s++)
        for (int d = 0; d < D; d++) {
            int page = table[s / B] * B * D, slot = s % B;
            key_pages[page + slot / L * L * D + d * L + slot % L] = keys[s * D + d];
            value_pages[page + slot * D + d] = values[s * D + d];
        }
    int64_t query_start[] = {0, T}, context_len[] = {C};
    int items[5 * 64], count = sheaf_attention_items(query_start, context_len, 1, Q, 1, 0, 1, items, 64);
    float *partials = malloc(sizeof(float) * (size_t)sheaf_attention_scratch(items, count, 1, D) + 1);
    plan step = {table, query_start, context_len, items, items[4] < 0 ? NULL : partials, PAGES, count, 0};
    sheaf_paged_attention(NULL, q, Q * D, key_pages, value_pages, &step, NULL, out, Q, 1, D, B, 1, 0, 0, 1);
    double error = 0;
    for (int row = 0; row < T * Q; row++) {
        double total = 0, sums[D] = {0};
        for (int s = 0; s <= C - T + row / Q; s++) {
            double score = 0;
            for (int d = 0; d < D; d++) score += (double)q[row * D + d] * keys[s * D + d];
            total += exp(score);
            for (int d = 0; d < D; d++) sums[d] += exp(score) * values[s * D + d];
        }
        for (int d = 0; d < D; d++) error = fmax(error, fabs(sums[d] / total - out[row * D + d]));
    }
    say(name, error, 2e-6);
}

int main(void) {
    if (sheaf_lanes() != L || sheaf_int8_offset()) return 2;
    check_linear();
    check_integers("int8", 8);
    check_integers("int4", 4);
    check_norm();
    check_attention("decode", 1);
    check_attention("prefill", 20);
    return failed;
}
