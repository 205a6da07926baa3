# ruff: noqa: E501 (a table of source lines)
"""The parity checks of the CPU's kernels are themselves checked: each planted bug must make one fail.

A mutant is the C source with one place changed, compiled for the least CPU that the kernels are written for, so that
every machine meets the same code. Mutants end, and stay inside their buffers: they run in this process.
"""

import itertools
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cpu_parity import (
    check_activate,
    check_attention,
    check_clamped_swiglu,
    check_company,
    check_exact_int8,
    check_exponentials,
    check_head_norm,
    check_int4,
    check_int8,
    check_likeliest,
    check_linear,
    check_odd_rows_int8,
    check_rms_norm,
    check_rope_kv_write,
    check_rows_of_a_table,
    use,
)
from sheaf_kernels.cpu import build, library

F32, BF16 = torch.float32, torch.bfloat16
BOTH = (F32, BF16)
SHAPE = {"Q": 6, "K": 2, "D": 48}


def multiplied() -> None:
    for dtype in BOTH:
        check_linear(dtype, 150, 18)


def normed() -> None:
    for dtype in BOTH:
        check_rms_norm(dtype, 21)


def head_normed() -> None:
    for dtype in BOTH:
        check_head_norm(dtype, 3, 24, wide=dtype is BF16)


def activated() -> None:
    for kind, gated in itertools.product(("silu", "gelu", "gelu_tanh"), (True, False)):
        check_activate(F32, 21, gated, kind)
    check_activate(BF16, 24, True, "silu")


def clamped() -> None:
    for dtype in BOTH:
        check_clamped_swiglu(dtype, 21)


def exponentials() -> None:
    check_exponentials()


def looked_up() -> None:
    for dtype, factor in itertools.product(BOTH, (1.0, 1 / 3)):
        check_rows_of_a_table(dtype, 21, factor)


def likeliest() -> None:
    for dtype in BOTH:
        check_likeliest(dtype, 50)


def rotated() -> None:
    for dtype in BOTH:
        check_rope_kv_write(dtype)


def decoded() -> None:
    """One page, several, several blocks; then chunks that are merged."""
    for dtype in BOTH:
        check_attention(dtype, [(1, 1), (17, 1), (135, 1)], SHAPE)
        check_attention(dtype, [(1100, 1)], {"Q": 3, "K": 1, "D": 32, "B": 32})
        check_attention(dtype, [(200, 1), (1100, 1)], SHAPE, spread=60.0)


def prefilled() -> None:
    """Prompts of more rows than a work item has, alone and behind a prefix of several chunks."""
    for dtype in BOTH:
        check_attention(dtype, [(70, 70), (90, 9), (600, 20)], SHAPE)


def windowed() -> None:
    for dtype in BOTH:
        check_attention(dtype, [(150, 30), (700, 1)], SHAPE, window=70, softcap=3.0, sinks=True)


def in_company() -> None:
    check_company(F32, [(40, 9), (1100, 60)])


def exact() -> None:
    check_exact_int8(rows=13, outputs=21, inputs=150, seed=1)


def rounded() -> None:
    for dtype in BOTH:
        check_int8(dtype, 35, 130)


def four_bits() -> None:
    for dtype in BOTH:
        check_int4(dtype, 35, 150)


def odd_rows() -> None:
    for dtype in BOTH:
        check_odd_rows_int8(dtype)


# What the bug is, the file it is in (common.h: and the file that is compiled with it), a check, old and new text.
MUTANTS: list[tuple[str, str, Callable[[], None], str, str]] = [
    ("channels behind the last panel's", "common.h linear", multiplied, "for (int c = 0; c < left; c++)", "for (int c = 0; c < left - 1; c++)"),
    ("bias forgotten", "common.h linear", multiplied, "if (bias) sums +=", "if (0) sums +="),
    ("bias of the last panel forgotten", "common.h linear", multiplied, "(bias ? load1(bf16, bias, column + c) : 0.0f)", "0.0f"),
    ("bias of the first panel", "common.h linear", multiplied, "load(bf16, bias, column);", "load(bf16, bias, 0);"),
    ("last input lost", "common.h linear", multiplied, "for (int k = 0; k < K; k++) {", "for (int k = 0; k < K - 1; k++) {"),
    ("last pair of inputs lost", "common.h linear", multiplied, "for (int k = 0; k < K; k += 2) {", "for (int k = 0; k < K - 2; k += 2) {"),
    ("pairs swapped", "common.h linear", multiplied, "w[j] = (vec)(p[j] << 16);", "w[j] = (vec)(p[j] & 0xffff0000u);"),
    ("second of a pair times the first input", "common.h linear", multiplied, "x[i * x_stride + 1] * w[j]", "x[i * x_stride] * w[j]"),
    ("every row the first", "common.h linear", multiplied, "s[i][j] += xf[i * x_stride + k] * p[j]", "s[i][j] += xf[k] * p[j]"),
    ("second panel the first", "common.h linear", multiplied, "load_f32(wf + j * w_stride + (size_t)k * LANES)", "load_f32(wf + (size_t)k * LANES)"),
    ("sums of another panel", "common.h linear", multiplied, "store_f32(sums + i * stride + j * LANES, s[i][j]);", "store_f32(sums + i * stride + j * LANES, s[i][0]);"),
    ("truncated, not rounded", "common.h elementwise", normed, "r = u + 0x7fff + ((u >> 16) & 1)", "r = u"),
    ("ties away from even", "common.h elementwise", normed, "r = u + 0x7fff + ((u >> 16) & 1)", "r = u + 0x8000"),
    ("ties of a tail away from even", "common.h elementwise", normed, "(u + 0x7fff + ((u >> 16) & 1)) >> 16", "(u + 0x8000) >> 16"),
    ("last row lost", "linear.c", multiplied, "rows; m < m1; m += rows, passes--", "rows; m < m1 - 1; m += rows, passes--"),
    ("row behind a gap", "linear.c", multiplied, "l->x + m * l->x_stride * x_size", "l->x + (size_t)m * l->K * x_size"),
    ("panel of another group", "linear.c", multiplied, "l->w + p * panel * size", "l->w + p0 * panel * size"),
    ("row of the first block", "linear.c", multiplied, "l->N, m + i, p + j,\n", "l->N, m - m0 + i, p + j,\n"),
    ("residual lost", "elementwise.c", normed, "load(bf16, n->x, in + c) + load(bf16, n->residual, res + c)", "load(bf16, n->x, in + c)"),
    ("residual lost in the tail", "elementwise.c", normed, "load1(bf16, n->x, in + c) + load1(bf16, n->residual, res + c)", "load1(bf16, n->x, in + c)"),
    ("residual of the first row", "elementwise.c", normed, "res = t * n->residual_stride", "res = 0 * n->residual_stride"),
    ("sum not rounded before its square", "elementwise.c", normed, "vec v = round_vec(bf16, load(bf16, n->x, in + c) + load(bf16, n->residual, res + c));", "vec v = load(bf16, n->x, in + c) + load(bf16, n->residual, res + c);"),
    ("tail of the squares lost", "elementwise.c", normed, "float v = load1(bf16, h, at + c); rest += v * v;", "float v = load1(bf16, h, at + c); rest += 0 * v;"),
    ("squares of the tail alone", "elementwise.c", normed, "(sum_vec(squares) + rest)", "(rest)"),
    ("lanes lost in the sum", "common.h elementwise", normed, "v += upper(v, n);", "v += n == 1 ? v : upper(v, n);"),
    ("eps forgotten", "elementwise.c", normed, "/ C + n->eps)", "/ C)"),
    ("weight forgotten", "elementwise.c", normed, "(n->wide ? v : round_vec(bf16, v)) * w", "(n->wide ? v : round_vec(bf16, v))"),
    ("not rounded before a narrow weight", "elementwise.c", normed, "(n->wide ? v : round_vec(bf16, v)) * w", "v * w"),
    ("not rounded in the tail", "elementwise.c", normed, "(n->wide ? v : round1(bf16, v)) * w", "v * w"),
    ("wide weight read as narrow", "elementwise.c", normed, "float w = n->wide ? ((const float *)n->weight)[c]", "float w = n->wide ? 1.0f"),
    ("every head the first", "elementwise.c", head_normed, "(size_t)(t % n->H) * C", "(size_t)(t % n->H * 0) * C"),
    ("gap between rows forgotten", "elementwise.c", head_normed, "t / n->H * n->x_stride", "(size_t)(t / n->H) * n->H * C"),
    ("gate and up swapped", "elementwise.c", activated, "round_vec(bf16, act_vec(kind, x)) * up : act_vec", "round_vec(bf16, act_vec(kind, up)) * x : act_vec"),
    ("gate not rounded", "elementwise.c", activated, "a->gated ? round_vec(bf16, act_vec(kind, x)) * up", "a->gated ? act_vec(kind, x) * up"),
    ("up of the gate's columns", "elementwise.c", activated, "up = load(bf16, a->x, in + I)", "up = load(bf16, a->x, in)"),
    ("up of the tail's gate", "elementwise.c", activated, "2 * i + 1 : I + i", "2 * i + 1 : i"),
    ("last columns lost", "elementwise.c", activated, "else for (int i = 0; i < count; i++) store1(bf16, a->y", "else for (int i = 0; i < count - 1; i++) store1(bf16, a->y"),
    ("tanh for erf", "elementwise.c", activated, "if (kind == GELU) return", "if (0) return"),
    ("erf is even", "elementwise.c", activated, "return select_vec(x < 0.0f, -y, y);", "return y;"),
    ("half a sigmoid's argument", "elementwise.c", activated, "exp_vec(-2.0f * u)", "exp_vec(-u)"),
    ("silu of the other sign", "elementwise.c", activated, "if (kind == SILU) return x / (1.0f + exp_vec(-x));", "if (kind == SILU) return x / (1.0f + exp_vec(x));"),
    ("a coefficient of e^x", "common.h elementwise", exponentials, "1.6666665459e-1f", "1.6665665459e-1f"),
    ("e^x one power of two off", "common.h elementwise", activated, "+ 127) << 23", "+ 126) << 23"),
    ("infinite e^x forgotten", "common.h elementwise", exponentials, "y = select_vec(x > zero + 88.0f, zero + INFINITY, y);", ""),
    ("gates unbounded", "elementwise.c", clamped, "gate = select_vec(gate > limit, limit, gate);", ""),
    ("ups bounded on one side", "elementwise.c", clamped, "up = select_vec(up < -limit, -limit, up);", ""),
    ("gates bounded on both sides", "elementwise.c", clamped, "gate = select_vec(gate > limit, limit, gate);", "gate = select_vec(gate > limit, limit, gate); gate = select_vec(gate < -limit, -limit, gate);"),
    ("alpha forgotten", "elementwise.c", clamped, "gate * a->alpha", "gate"),
    ("one not added to up", "elementwise.c", clamped, "round_vec(bf16, up + 1.0f)", "up"),
    ("gates and ups one after the other", "elementwise.c", clamped, "(pairs ? 2 * c : c)", "(pairs ? c : c)"),
    ("rotated backwards", "elementwise.c", rotated, "x * c - y * s);", "x * c + y * s);"),
    ("second half unrotated", "elementwise.c", rotated, "y * c + x * s);", "y);"),
    ("angle of the first token", "elementwise.c", rotated, "r->cos + (size_t)t * half", "r->cos"),
    ("keys unrotated", "elementwise.c", rotated, "n < r->Q + r->K; n++", "n < r->Q; n++"),
    ("key of a query head", "elementwise.c", rotated, "key = row + (size_t)(r->Q + n) * D", "key = row + (size_t)n * D"),
    ("values are keys", "elementwise.c", rotated, "value = row + (size_t)(r->Q + r->K + n) * D", "value = row + (size_t)(r->Q + n) * D"),
    ("slot of another panel", "elementwise.c", rotated, "slot / LANES * LANES * D + slot % LANES * pair", "slot % LANES * pair"),
    ("heads of a page swapped with slots", "elementwise.c", rotated, "head = (page * r->K + n) * r->block * D", "head = (page * r->K + (r->K - 1 - n)) * r->block * D"),
    ("pair of values swapped", "elementwise.c", rotated, "slot / pair * pair * D + slot % pair", "slot / pair * pair * D + (pair - 1 - slot % pair)"),
    ("rows lost between work items", "elementwise.c", rotated, "t0 + r->step < r->T ? t0 + r->step : r->T;\n    if (r->bf16) rope", "t0 + r->step < r->T ? t0 + r->step - 1 : r->T - 1;\n    if (r->bf16) rope"),
    ("widened without its tail", "elementwise.c", multiplied, "for (; c < w->C; c++) y[c] = widen(x[c]);", "for (; c < w->C; c++) y[c] = 0;"),
    ("widened without the gap", "elementwise.c", multiplied, "w->x + t * w->x_stride", "w->x + (size_t)t * w->C"),
    ("row of another number", "lookup.c", looked_up, "from = (size_t)row * C", "from = (size_t)t % 50 * C"),
    ("numbers of 8 bytes read as 4", "lookup.c", looked_up, "k->wide ? ((const int64_t *)k->index)[t]", "0 ? ((const int64_t *)k->index)[t]"),
    ("factor forgotten", "lookup.c", looked_up, "load(bf16, k->table, from + c) * k->factor", "load(bf16, k->table, from + c)"),
    ("factor of the tail forgotten", "lookup.c", looked_up, "load1(bf16, k->table, from + c) * k->factor", "load1(bf16, k->table, from + c)"),
    ("half of a row copied", "lookup.c", looked_up, "from * size, C * size)", "from * size, C * size / 2)"),
    ("tie to the last", "lookup.c", likeliest, "if (any) break;", "if (any && at) break;"),
    ("largest of the tail lost", "lookup.c", likeliest, "if (now > best) best = now;", "if (now > best && v % 2 == 0) best = now;"),
    ("NaN overlooked", "lookup.c", likeliest, "numbers &= !odd[n];", ""),
    ("NaN of the tail overlooked", "lookup.c", likeliest, "numbers &= now == now;", ""),
    ("infinity chosen", "lookup.c", likeliest, "best == INFINITY || ", ""),
    ("nothing but -inf chosen", "lookup.c", likeliest, " || best == -INFINITY", ""),
    ("row of another request", "lookup.c", likeliest, "k->x + item * k->x_stride", "k->x + (size_t)item * k->V"),
    ("lanes lost in the maximum", "common.h lookup", likeliest, "v = greater_vec(v, upper(v, n));", "v = n == 1 ? v : greater_vec(v, upper(v, n));"),
    ("future visible", "attention.c", prefilled, "own - base + 1 < KEYS ? (int)(own - base + 1)", "own - base + 2 < KEYS ? (int)(own - base + 2)"),
    ("own key hidden", "attention.c", prefilled, "own - base + 1 < KEYS ? (int)(own - base + 1)", "own - base < KEYS ? (int)(own - base)"),
    ("mask forgotten in whole groups", "attention.c", prefilled, "(n + 1) * LANES > end", "(n + 1) * LANES > end + LANES"),
    ("every row has the first one's place", "attention.c", prefilled, "own = position + r / a->G", "own = position"),
    ("tokens swapped with heads", "attention.c", prefilled, "(start + t->first + r / G) * a->q_stride + (size_t)(head * G + r % G) * D", "(start + t->first + r % G % t->tokens) * a->q_stride + (size_t)(head * G + r / t->tokens % G) * D"),
    ("heads of another group", "attention.c", decoded, "(size_t)(head * G + r % G) * D", "(size_t)(r % G * a->K + head) * D"),
    ("result of another head", "attention.c", decoded, "int q_head = head * G + r % G;", "int q_head = r % G * a->K + head;"),
    ("tokens of the first item", "attention.c", prefilled, "out_at(a, start + t->first + r / G, q_head)", "out_at(a, start + r / G, q_head)"),
    ("position of the first item", "attention.c", prefilled, "- queries + t->first", "- queries"),
    ("scale forgotten", "attention.c", decoded, "s *= a->scale;", ""),
    ("cap forgotten", "attention.c", windowed, "if (a->softcap == 0.0f) return s;", "return s;"),
    ("half of the cap's argument", "attention.c", windowed, "(2.0f / a->softcap)", "(1.0f / a->softcap)"),
    ("sink forgotten", "attention.c", windowed, "if (a->sinks) {", "if (0) {"),
    ("sink of the first head", "attention.c", windowed, "load1(bf16, a->sinks, head)", "load1(bf16, a->sinks, 0)"),
    ("sink below the highest only", "attention.c", windowed, "total * kept + exp1(sink - high)", "total * kept + 1.0f"),
    ("window off by one", "attention.c", windowed, "own - a->plan->window + 1 : 0", "own - a->plan->window : 0"),
    ("window's edge unmasked", "attention.c", windowed, "n * LANES < start || ", ""),
    ("page off by one", "attention.c", decoded, "table[key / a->block]", "table[key / a->block ? key / a->block - 1 : 0]"),
    ("table of the first request", "attention.c", decoded, "a->plan->table + request * a->plan->table_stride", "a->plan->table"),
    ("slot of a page's begin", "attention.c", decoded, "* a->block + key % a->block;", "* a->block;"),
    ("keys of the first head", "attention.c", decoded, "* a->K + head) * a->block", "* a->K) * a->block"),
    ("values are keys", "attention.c", decoded, "p.values[n] = a->values + at", "p.values[n] = a->keys + at"),
    ("last key's value lost", "attention.c", decoded, "end = k / LANES * LANES + LANES < to ? k / LANES * LANES + LANES : to;", "end = k / LANES * LANES + LANES < to ? k / LANES * LANES + LANES : to; if (end == to && to > 1) to = --end;"),
    ("value that nobody wrote", "attention.c", decoded, "if (k + 1 == to)", "if (0)"),
    ("value of the first channels", "attention.c", decoded, "k % LANES * D + d;", "k % LANES * D;"),
    ("weight of the first row", "attention.c", prefilled, "s[i][j] += weight[i * KEYS] * v[j]", "s[i][j] += weight[0] * v[j]"),
    ("rows behind the first tile", "attention.c", prefilled, "weights + r * row, here.values", "weights, here.values"),
    ("last channels lost", "attention.c", decoded, "for (int d = 0; d < D; d += 2 * LANES) { /*", "for (int d = 0; d + 2 * LANES < D; d += 2 * LANES) { /*"),
    ("sum not rescaled", "attention.c", decoded, "s->total[r] = s->total[r] * old[r] + sum_vec(total)", "s->total[r] = s->total[r] + sum_vec(total)"),
    ("accumulator not rescaled", "attention.c", decoded, "if (old[r] != 1.0f)", "if (0)"),
    ("highest of this block alone", "attention.c", decoded, "top = s->top[r] > high_score ? s->top[r] : high_score", "top = high_score"),
    ("NaN lost among the scores", "attention.c", decoded, "float high_score = max_vec(best)", "float high_score = best[0]"),
    ("not divided", "attention.c", decoded, "float scale = 1.0f / total;", "float scale = 1.0f;"),
    ("chunk not rescaled", "attention.c", prefilled, "*total = *total * a + total2 * b;", "*total = *total + total2;"),
    ("sums of a chunk not rescaled", "attention.c", prefilled, "load_f32(sums + d) * a + load_f32(sums2 + d) * b", "load_f32(sums + d) + load_f32(sums2 + d) * b"),
    ("last chunk lost", "attention.c", prefilled, "for (long chunk = low / CHUNK; chunk * CHUNK < high; chunk++)", "for (long chunk = low / CHUNK; (chunk ? chunk + 1 : chunk) * CHUNK < high; chunk++)"),
    ("chunks of a lone query overlap", "attention.c", decoded, "if (high > (long)(t->chunk + 1) * CHUNK) high = (long)(t->chunk + 1) * CHUNK;", ""),
    ("every chunk begins at zero", "attention.c", decoded, "if (low < (long)t->chunk * CHUNK) low = (long)t->chunk * CHUNK;", ""),
    ("last chunk not merged", "attention.c", decoded, "for (int n = 0; n < count; n++) {\n            const float *p", "for (int n = 0; n < count - 1; n++) {\n            const float *p"),
    ("merge of another head", "attention.c", decoded, "* MAX_ROWS) + head % a->G)", "* MAX_ROWS))"),
    ("merge forgotten", "attention.c", decoded, "->plan->partials != NULL", "->plan->partials == NULL"),
    ("last chunk not listed", "attention.c", decoded, "for (int c = first; c <= last; c++) {", "for (int c = first; c < last; c++) {"),
    ("last tile not listed", "attention.c", prefilled, "for (long at = (queries - 1) / tile * tile;", "for (long at = queries / tile * tile - tile;"),
    ("blocks begin where the window does", "attention.c", windowed, "begin(&s, rows, D);\n        long from = low > chunk * CHUNK ? low : chunk * CHUNK;", "begin(&s, rows, D);\n        long from = low > chunk * CHUNK ? low + 1 : chunk * CHUNK;"),
    ("chunks where the item begins", "attention.c", in_company, "int whole = low / CHUNK == (high - 1) / CHUNK;", "int whole = rows > 24;"),
    ("rounded down", "int8.c", rounded, "* factor + 12582912.0f;", "* factor - 0.5f + 12582912.0f;"),
    ("tail of a group is the row's next", "int8.c", rounded, "for (; i < GROUP; i++) values[i] = 0.0f;", "for (; i < GROUP; i++) values[i] = 1.0f;"),
    ("largest of positive numbers only", "int8.c", rounded, "(ivec)load_f32(values + v) & 0x7fffffff", "(ivec)load_f32(values + v)"),
    ("largest of the first lanes", "int8.c", rounded, "largest = most[v] > largest ? most[v] : largest", "largest = v < 2 && most[v] > largest ? most[v] : largest"),
    ("128 steps, not 127", "int8.c", exact, "some ? 127.0f / size", "some ? 128.0f / size"),
    ("scale of the step forgotten", "int8.c", rounded, "(some ? size / 127.0f : 0.0f)", "(some ? size : 0.0f)"),
    ("infinity overlooked", "int8.c", odd_rows, "out->scale = finite ?", "out->scale = 1 ?"),
    ("quads in their own order", "int8.c", exact, "(n & 1) << 1 | n >> 1", "n"),
    ("groups of another row", "int8.c", rounded, "w->q + (size_t)t * w->groups + g", "w->q + (size_t)(t * w->groups + w->groups - 1 - g)"),
    ("gap between rows forgotten", "int8.c", rounded, "at = t * w->x_stride + (size_t)g * GROUP", "at = (size_t)t * w->K + (size_t)g * GROUP"),
    ("odd weights without their sign", "int8.c", exact, "((half ? both : both << 8) >> 8)", "(half ? both >> 8 : both & 255)"),
    ("half of the quads lost", "int8.c", exact, "for (int half = 0; half < 2; half++)", "for (int half = 0; half < 1; half++)"),
    ("scale of x forgotten", "int8.c", rounded, "(scales[j] * x[i * x_stride].scale)", "scales[j]"),
    ("scale of x of the first row", "int8.c", rounded, "(scales[j] * x[i * x_stride].scale)", "(scales[j] * x[0].scale)"),
    ("scales of the first panel", "int8.c", rounded, "load_f32(scale + j * scale_stride)", "load_f32(scale)"),
    ("scale of the first group", "int8.c", rounded, "w += bytes, scale += LANES)", "w += bytes)"),
    ("sums of the group before", "int8.c", exact, "ivec s[ROWS][PANELS_AT_ONCE];\n", "static ivec s[ROWS][PANELS_AT_ONCE];\n        if (g == 0)\n"),
    ("last group lost", "int8.c", exact, "for (int g = 0; g < l->groups; g++, x++", "for (int g = 0; g < l->groups - 1; g++, x++"),
    ("zero points of the first group", "int8.c", four_bits, "zero + (size_t)g * LANES : NULL", "zero : NULL"),
    ("zero points of the first panel", "int8.c", four_bits, "l->zero + (size_t)p * l->groups * LANES", "l->zero"),
    ("zero points of the first of two panels", "int8.c", four_bits, "zero + j * stride", "zero"),
    ("zero points by another row's sum", "int8.c", four_bits, "offset * -x[i * x_stride].sum", "offset * -x[0].sum"),
    ("lower halves twice", "int8.c", four_bits, "(quads[j] >> 4) & 0x0f0f0f0f", "lower[j]"),
    ("upper halves with a sign", "int8.c", four_bits, "(quads[j] >> 4) & 0x0f0f0f0f", "quads[j] >> 4"),
    ("upper halves with the lower's rows", "int8.c", four_bits, "bits == 4 ? k + 4 : k, quads", "k, quads"),
    ("rows behind the first tile", "int8.c", exact, "l->x + m * x_stride;", "l->x;"),
]  # fmt: skip
CHECKS = list(dict.fromkeys(check for _, _, check, _, _ in MUTANTS))


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what the sources are compiled to."""
    if not build.levels_of(platform.machine(), build.machine_features()):
        pytest.skip("no kernels are written for this CPU")
    if not any(map(shutil.which, build.COMPILERS)):
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("objects")
    for source in build.SOURCES.glob("*.c"):
        _compile(source, folder, folder)
    return folder


def _run(*arguments: str) -> None:
    compiler = next(filter(None, map(shutil.which, build.COMPILERS)))
    level = build.levels_of(platform.machine(), build.machine_features())[-1]
    subprocess.run([compiler, *build.FLAGS, *level.flags, "-w", *arguments], check=True)


def _compile(source: Path, folder: Path, objects: Path) -> Path:
    """The intrinsics' header, which is most of what a compiler reads, is read once for each way to optimise."""
    optimisation = _optimisation(source.stem)
    header = objects / "".join((*optimisation, ".h"))
    if not header.exists():
        header.write_text("#if defined(__x86_64__)\n#include <immintrin.h>\n#endif\n")
        _run(*optimisation, "-x", "c-header", str(header), "-o", f"{header}.gch")
    made = folder / f"{source.stem}.o"
    _run(*optimisation, "-include", str(header), "-I", str(build.SOURCES), "-c", str(source), "-o", str(made))
    return made


def _optimisation(stem: str) -> tuple[str, ...]:
    """Attention has many calls that are written out, which takes a third of the time without. In int8.c a product and
    its rounding are to be one operation."""
    return ("-O0",) if stem == "attention" else ("-O1", "-fexpensive-optimizations")


def _link(objects: Path, mutant: Path | None, folder: Path) -> library.Library:
    """One library of all of them, with ``mutant`` in the place of the one that has its name."""
    parts = [mutant if mutant and mutant.name == part.name else part for part in sorted(objects.glob("*.o"))]
    _run(*map(str, parts), "-o", str(folder / "mutant.so"), "-lm")
    made = library.Library(folder / "mutant.so", "mutant")
    made.threads = 1
    return made


def _mutate(place: str, old: str, new: str, folder: Path, objects: Path) -> Path:
    """``place`` is a source, or the header and the source that is compiled with it."""
    name, _, user = place.partition(" ")
    text = (build.SOURCES / name).read_text()
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {name}"
    changed = text.replace(old, new)
    source = folder / (f"{user}.c" if user else name)
    if user:
        (folder / name).write_text(changed)
        source.write_text((build.SOURCES / source.name).read_text())
    else:
        source.write_text(changed)
    return _compile(source, folder, objects)


@pytest.mark.parametrize(
    ("place", "check", "old", "new"),
    [m[1:] for m in MUTANTS],
    ids=[f"{m[1].split('.')[0]}-{m[2].__name__}-{m[0]}".replace(" ", "_") for m in MUTANTS],
)
def test_a_parity_check_kills(
    place: str,
    check: Callable[[], None],
    old: str,
    new: str,
    objects: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(_link(objects, _mutate(place, old, new, tmp_path, objects), tmp_path), monkeypatch)
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_the_parity_check_passes_the_original(
    check: Callable[[], None], objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(_link(objects, None, tmp_path), monkeypatch)
    check()
