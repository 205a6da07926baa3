"""Every kernel against its reference on random inputs: one source for the tests and for ``make gpu-check``.

Each ``check_*`` builds inputs from its case, runs wrapper and reference, and raises AssertionError with the
largest difference when they disagree by more than TOLERANCE. ``op`` is the module under test, so that a
planted mutant of it can be passed instead. Unreferenced slots, unreferenced pages and the null page hold
NaN, pages are permuted."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sheaf_kernels import adjust, experts, head_norm, paged_attention, rms_norm, rope_kv_write, sample, swiglu
from sheaf_kernels.checks import Checker
from sheaf_kernels.split_kv import SplitPlan

# (rtol, atol): |kernel - reference| <= atol + rtol * |reference|, for inputs of unit variance.
TOLERANCE = {
    torch.float32: (2e-5, 2e-5),
    torch.float16: (2e-3, 2e-3),
    torch.bfloat16: (1.6e-2, 1.6e-2),
}


@dataclass(frozen=True)
class AttentionCase:
    """A step of sequences: the tokens each computes now, and its context including them."""

    query_lens: tuple[int, ...]
    context_lens: tuple[int, ...]
    num_q_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    page_size: int = 16
    num_multiprocessors: int = 4  # what the plan believes, to force splits on a small input
    min_chunk: int = 64
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False


@dataclass(frozen=True)
class AttentionInputs:
    q_TQD: Tensor
    k_cache_PKBD: Tensor
    v_cache_PKBD: Tensor
    block_table_SL: Tensor
    query_start: Tensor
    context_len_S: Tensor
    scale: float
    sinks_Q: Tensor | None = None

    def args(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float]:
        """In the order of the attention wrappers, up to ``out``."""
        return (
            self.q_TQD, self.k_cache_PKBD, self.v_cache_PKBD, self.block_table_SL,
            self.query_start, self.context_len_S, self.scale,
        )  # fmt: skip


def attention_inputs(
    case: AttentionCase, dtype: torch.dtype, device: torch.device | str, seed: int = 0
) -> AttentionInputs:
    gen = torch.Generator().manual_seed(seed)
    pages_of = [-(-c // case.page_size) for c in case.context_lens]
    num_pages = 1 + sum(pages_of) + 3  # the null page, and three nobody owns
    shape = (num_pages, case.num_kv_heads, case.page_size, case.head_dim)
    k_cache, v_cache = torch.full(shape, float("nan")), torch.full(shape, float("nan"))
    order = (1 + torch.randperm(num_pages - 1, generator=gen)).tolist()
    block_table = torch.zeros(len(pages_of), max([*pages_of, 1]) + 1, dtype=torch.int32)
    for s, context in enumerate(case.context_lens):
        # What no query's window reaches may have been given back.
        first = max(0, context - case.query_lens[s] - case.window + 1) if case.window else 0
        for j in range(pages_of[s]):
            page = order.pop()
            block_table[s, j] = page
            filled = min(context - j * case.page_size, case.page_size)
            slots = (case.num_kv_heads, filled, case.head_dim)
            # Keys that differ in size make scores that differ: a softmax over equal scores hides errors.
            k_cache[page, :, :filled] = 2.0 * torch.randn(slots, generator=gen)
            v_cache[page, :, :filled] = torch.randn(slots, generator=gen)
            stale = min(max(first - j * case.page_size, 0), filled)
            k_cache[page, :, :stale] = v_cache[page, :, :stale] = float("nan")
    tokens = sum(case.query_lens)
    # A view with a token stride of its own, as a fused projection gives.
    fused = torch.randn(tokens, case.num_q_heads + 2 * case.num_kv_heads, case.head_dim, generator=gen)
    starts = torch.tensor([0, *case.query_lens]).cumsum(0)
    return AttentionInputs(
        q_TQD=fused.to(device, dtype)[:, : case.num_q_heads],
        k_cache_PKBD=k_cache.to(device, dtype),
        v_cache_PKBD=v_cache.to(device, dtype),
        block_table_SL=block_table.to(device),
        query_start=starts.to(device, torch.int32),
        context_len_S=torch.tensor(case.context_lens, dtype=torch.int32, device=device),
        scale=case.head_dim**-0.5,
        sinks_Q=torch.randn(case.num_q_heads, generator=gen).to(device, dtype) if case.sinks else None,
    )


def assert_close(name: str, got: Tensor, want: Tensor) -> None:
    rtol, atol = TOLERANCE[want.dtype]
    try:
        torch.testing.assert_close(got, want, rtol=rtol, atol=atol, equal_nan=True)
    except AssertionError as e:
        raise AssertionError(f"{name}: {e}") from None


def make_plan(
    case: AttentionCase,
    kind: paged_attention.PlanKind,
    dtype: torch.dtype,
    device: torch.device | str,
    op: ModuleType = paged_attention,
) -> SplitPlan:
    """A plan with room to spare, full of what an earlier, different step left behind."""
    plan: SplitPlan = op.allocate_plan(
        kind, max_seqs=len(case.query_lens) + 2, num_q_heads=case.num_q_heads,
        num_kv_heads=case.num_kv_heads, head_dim=case.head_dim, dtype=dtype, device=device,
        num_multiprocessors=case.num_multiprocessors, min_chunk=case.min_chunk, window=case.window,
    )  # fmt: skip
    plan.first_work_I.fill_(0)
    plan.first_slot_I.fill_(0)
    plan.partial_NKMD.fill_(float("nan"))
    plan.lse_NKM.fill_(float("nan"))
    return plan


def check_paged_attention(
    case: AttentionCase,
    dtype: torch.dtype,
    device: torch.device | str,
    op: ModuleType = paged_attention,
    seed: int = 0,
    kinds: tuple[paged_attention.PlanKind, ...] = paged_attention.PLANS,
) -> None:
    """Each plan writes its own rows, and none but those."""
    x = attention_inputs(case, dtype, device, seed)
    for kind in kinds:
        plan = make_plan(case, kind, dtype, device, op)
        plan.update(x.query_start, x.context_len_S)
        got, want = torch.full_like(x.q_TQD, 7.0), torch.full_like(x.q_TQD, 7.0)
        beside: dict[str, Any] = {"softcap": case.softcap, "sinks_Q": x.sinks_Q}
        op.paged_attention(*x.args(), got, plan, **beside)
        paged_attention.paged_attention_reference(
            *x.args(), want, plan.least, plan.most, window=case.window, **beside
        )
        assert_close(f"paged_attention, {kind}", got, want)


@dataclass(frozen=True)
class RopeCase:
    tokens: int = 5
    num_q_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    page_size: int = 16
    num_pages: int = 6


def check_rope_kv_write(
    case: RopeCase,
    dtype: torch.dtype,
    device: torch.device | str,
    op: ModuleType = rope_kv_write,
    seed: int = 0,
) -> None:
    gen = torch.Generator().manual_seed(seed)
    heads = case.num_q_heads + 2 * case.num_kv_heads
    fused = torch.randn(case.tokens, heads, case.head_dim, generator=gen).to(device, dtype)
    angle = torch.rand(case.tokens, case.head_dim, generator=gen)[:, : case.head_dim // 2] * 6.3
    slots = (
        torch.randperm((case.num_pages - 1) * case.page_size, generator=gen)[: case.tokens] + case.page_size
    )
    slots[1::3] = -1  # padding
    shape = (case.num_pages, case.num_kv_heads, case.page_size, case.head_dim)
    cache = torch.randn(shape, generator=gen).to(device, dtype)

    def run(fn: object) -> list[Tensor]:
        split = [case.num_q_heads, case.num_kv_heads, case.num_kv_heads]
        q, k, v = fused.clone().split(split, dim=1)
        k_cache, v_cache = cache.clone(), cache.clone()
        fn(  # type: ignore[operator]
            q, k, v, angle.cos().to(device), angle.sin().to(device), slots.to(device),
            k_cache, v_cache,
        )  # fmt: skip
        return [q, k_cache, v_cache]

    pairs = zip(run(op.rope_kv_write), run(rope_kv_write.rope_kv_write_reference), strict=True)
    for name, (got, want) in zip(("q", "k_cache", "v_cache"), pairs, strict=True):
        assert_close(f"rope_kv_write: {name}", got, want)


def check_rms_norm(
    tokens: int,
    channels: int,
    residual: bool,
    dtype: torch.dtype,
    device: torch.device | str,
    op: ModuleType = rms_norm,
    seed: int = 0,
    wide: bool = False,
) -> None:
    gen = torch.Generator().manual_seed(seed)
    x, r = torch.randn(2, tokens, channels, generator=gen).to(device, dtype)
    x[0] *= 1e-3  # where eps matters
    r[0] *= 1e-3
    weight = (1 + 0.2 * torch.randn(channels, generator=gen)).to(device, torch.float32 if wide else dtype)
    got = op.rms_norm(x, weight, 1e-5, r if residual else None)
    want = rms_norm.rms_norm_reference(x, weight, 1e-5, r if residual else None)
    for name, a, b in zip(("y", "h"), got, want, strict=True):
        assert_close(f"rms_norm: {name}", a, b)


def check_head_norm(
    tokens: int,
    heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device | str,
    op: ModuleType = head_norm,
    seed: int = 0,
    wide: bool = False,
) -> None:
    """Heads of a fused projection; those beside them stay as they are."""
    gen = torch.Generator().manual_seed(seed)
    fused = torch.randn(tokens, heads + 3, head_dim, generator=gen).to(device, dtype)
    fused[0] *= 1e-3  # where eps matters
    weight = (1 + 0.2 * torch.randn(head_dim, generator=gen)).to(device, torch.float32 if wide else dtype)
    got, want = fused.clone(), fused.clone()
    op.head_norm(got[:, 1 : heads + 1], weight, 1e-5)
    head_norm.head_norm_reference(want[:, 1 : heads + 1], weight, 1e-5)
    assert_close("head_norm", got, want)


def check_swiglu(
    tokens: int,
    channels: int,
    dtype: torch.dtype,
    device: torch.device | str,
    op: ModuleType = swiglu,
    seed: int = 0,
) -> None:
    gen = torch.Generator().manual_seed(seed)
    gate_up = (3.0 * torch.randn(tokens, 2 * channels, generator=gen)).to(device, dtype)
    assert_close("swiglu", op.swiglu(gate_up), swiglu.swiglu_reference(gate_up))


def check_sample(
    rows: int,
    vocab: int,
    dtype: torch.dtype,
    device: torch.device | str,
    op: ModuleType = sample,
    seed: int = 0,
    wishes: adjust.Wishes | None = None,
) -> None:
    """Tokens must be equal, but where u or top_p lies within DRAW_TOLERANCE of a border between tokens."""
    logits, *draws = sample_inputs(rows, vocab, dtype, device, seed)
    got = op.sample(logits, *draws, wishes=wishes)
    want = sample.sample_reference(logits, *draws, wishes=wishes)
    seen = logits if wishes is None else adjust.adjust_reference(logits, wishes)
    wrong = [
        s
        for s in (got != want).nonzero().flatten().tolist()
        if not _is_rounding(int(got[s]), s, seen, *draws)
    ]
    if wrong:
        described = [(s, int(got[s]), int(want[s]), *(float(v[s]) for v in draws[:4])) for s in wrong[:5]]
        raise AssertionError(
            f"sample: {len(wrong)} of {rows} rows differ; "
            f"(row, got, want, temperature, top_k, top_p, margin): {described}"
        )
    check_likeliest(logits, seen, op, wishes)


def check_likeliest(logits: Tensor, seen: Tensor, op: ModuleType, wishes: adjust.Wishes | None) -> None:
    got, want = op.likeliest(logits, wishes), seen.float().argmax(-1)
    if not got.equal(want):
        raise AssertionError(f"likeliest: {got.tolist()} instead of {want.tolist()}")


# Share of the mass by which float32 sums over a vocabulary may differ from exact ones.
DRAW_TOLERANCE = 1e-5


def _is_rounding(
    token: int,
    s: int,
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    margin: Tensor,
    uniform: Tensor,
) -> bool:
    """Whether ``token`` is what row s draws with u and top_p off by no more than DRAW_TOLERANCE."""
    # Where nothing is filtered the order is another one, so 1 stays 1.
    for slack in (0.0, DRAW_TOLERANCE, -DRAW_TOLERANCE) if top_p[s] < 1 else (0.0,):
        order, mass = sample.distribution_reference(
            logits[s], float(temperature[s]), int(top_k[s]), float(top_p[s]) + slack, float(margin[s])
        )
        total = mass.cumsum(-1) / mass.sum()
        for index in (order == token).nonzero().flatten().tolist():
            before = float(total[index - 1]) if index else 0.0
            if mass[index] > 0 and (
                before - DRAW_TOLERANCE < float(uniform[s]) < float(total[index]) + DRAW_TOLERANCE
            ):
                return True
    return False


_ALL = -torch.inf
# (temperature, top_k, top_p, margin)
SAMPLING = [
    (0.0, 0, 1.0, _ALL), (1.0, 0, 1.0, _ALL), (0.5, 0, 1.0, _ALL), (2.0, 1000000, 1.0, _ALL),
    (1.0, 1, 1.0, _ALL), (1.0, 3, 1.0, _ALL), (2.0, 5, 1.0, _ALL), (1.0, 0, 0.5, _ALL), (2.0, 0, 0.9, _ALL),
    (0.7, 0, 1e-6, _ALL), (2.0, 3, 0.6, _ALL), (1.0, 5, 0.3, _ALL), (2.0, 1, 0.5, _ALL),
    (1.0, 0, 1.0, -1.0), (2.0, 0, 1.0, 0.0), (1.0, 4, 1.0, -0.5), (1.0, 0, 0.8, -1.5), (3.0, 9, 0.7, -1.0),
]  # fmt: skip


def sample_inputs(
    rows: int, vocab: int, dtype: torch.dtype, device: torch.device | str, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Arguments of ``sample``: every entry of SAMPLING, on rows of which some are full of ties, some are
    negative throughout; some tokens are banned. Logits are close to each other, so that a wrong set of tokens
    draws a wrong token.
    """
    gen = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=gen)
    logits[::3] = logits[::3].round()
    logits[1::4] -= 6.0
    logits[:, 2::7] = -torch.inf
    params = [SAMPLING[s % len(SAMPLING)] for s in range(rows)]
    return (
        logits.to(device, dtype),
        torch.tensor([t for t, *_ in params], dtype=torch.float32, device=device),
        torch.tensor([k for _, k, *_ in params], dtype=torch.int32, device=device),
        torch.tensor([p for *_, p, _ in params], dtype=torch.float64, device=device),
        torch.tensor([m for *_, m in params], dtype=torch.float32, device=device),
        torch.rand(rows, dtype=torch.float64, generator=gen).to(device),
    )


def check_adjust(
    rows: int,
    vocab: int,
    dtype: torch.dtype,
    device: torch.device | str,
    op: ModuleType = sample,
    seed: int = 0,
) -> None:
    """What the sampler's first launch makes of the logits, and the likeliest of that."""
    logits, wishes = adjust_inputs(rows, vocab, dtype, device, seed)
    check = Checker("adjust")
    check.tensor("logits", logits, "S V", [dtype])
    want = adjust.adjust_reference(logits, wishes)
    assert_close("adjust", op.survey(check, logits, None, wishes).logits_SV, want)
    check_likeliest(logits, want, op, wishes)


def adjust_inputs(
    rows: int, vocab: int, dtype: torch.dtype, device: torch.device | str, seed: int = 0
) -> tuple[Tensor, adjust.Wishes]:
    """Logits and wishes: every mixture of bias, history and mask. Other rows of the buffers hold what shows
    when it is read."""
    gen = torch.Generator().manual_seed(seed)
    flags, masked = torch.arange(rows, dtype=torch.int32) % 4, torch.arange(rows) // 4 % 2 == 0
    held = torch.randperm(rows + 3, generator=gen)[:rows].to(torch.int32)
    history = torch.full((rows + 3, vocab), 1 << 20, dtype=torch.int32)
    bias = torch.full((rows + 3, vocab), torch.nan)
    counts = torch.randint(0, 3, (rows, vocab), generator=gen, dtype=torch.int32)
    prompt = torch.randint(0, 2, (rows, vocab), generator=gen, dtype=torch.int32)
    history[held] = counts | (prompt * adjust.IN_PROMPT)
    bias[held] = torch.randn(rows, vocab, generator=gen).masked_fill_(counts == 2, -torch.inf)
    history[held[flags & adjust.PENALISED == 0]] = 1 << 20
    bias[held[flags & adjust.BIASED == 0]] = torch.nan
    mask = torch.where(masked, masked.cumsum(0) - 1, -1).flip(0).to(torch.int32)
    words = torch.randint(-(2**31), 2**31, (rows, -(-vocab // 32)), generator=gen, dtype=torch.int64)
    logits = torch.randn(rows, vocab, generator=gen).to(dtype)
    made = (
        held,
        flags,
        history,
        bias,
        0.5 + 1.5 * torch.rand(rows, generator=gen),
        torch.randn(rows, generator=gen),
        torch.randn(rows, generator=gen),
        mask,
        words.to(torch.int32),
    )
    return logits.to(device), adjust.Wishes(*(tensor.to(device) for tensor in made))


@dataclass(frozen=True)
class ExpertsCase:
    tokens: int = 7
    top_k: int = 2
    experts: int = 5
    channels: int = 40
    out: int = 24
    bias: bool = False
    by_token: bool = True
    in_order: bool = False
    scale: str = ""  # "in" or "out"
    favourite: bool = False  # all tokens choose the same first expert


def check_experts(
    case: ExpertsCase,
    dtype: torch.dtype,
    device: torch.device | str,
    op: ModuleType = experts,
    seed: int = 0,
) -> None:
    """Experts differ in size, so that rows of another one show; some have no token."""
    gen = torch.Generator().manual_seed(seed)
    scores = torch.rand(case.tokens, case.experts, generator=gen)
    scores[:, case.experts // 2] = 2.0 if case.favourite else -1.0
    chosen = scores.topk(case.top_k, dim=-1).indices.to(device)
    got, want = op.sort_pairs(chosen, case.experts), experts.sort_pairs_reference(chosen, case.experts)
    for name in ("sorted_P", "first_E1"):
        if not getattr(got, name).equal(getattr(want, name)):
            raise AssertionError(f"sort_pairs: {name}: {getattr(got, name)} instead of {getattr(want, name)}")
    pairs = case.tokens * case.top_k
    x = torch.randn(case.tokens if case.by_token else pairs, case.channels + 3, generator=gen)
    weight = torch.randn(case.experts, case.out, case.channels, generator=gen) / case.channels**0.5
    bias = torch.randn(case.experts, case.out, generator=gen).to(device, dtype) if case.bias else None
    scale = torch.rand(pairs, generator=gen).to(device) + 0.5
    args = (x.to(device, dtype)[:, : case.channels], weight.to(device, dtype), bias, want)
    beside: dict[str, Any] = {"by_token": case.by_token, "in_order": case.in_order}
    if case.scale:
        beside[f"scale_{case.scale}_P"] = scale
    assert_close(
        "grouped_linear",
        op.grouped_linear(*args, **beside),
        experts.grouped_linear_reference(*args, **beside),
    )
