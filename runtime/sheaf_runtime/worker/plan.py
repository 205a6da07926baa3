"""What the engine tells the device side to do in one step, and what comes back. Imports no torch.

A ``StepPlan`` is a *difference*: the worker keeps a mirror of every running request (its tokens, block
table, sampling state) in a fixed row, so that a plan costs bytes in proportion to what changed and can be
sent to other ranks as it is.
"""

from __future__ import annotations

import msgspec

from sheaf_runtime.protocol.messages import TokenLogprobs
from sheaf_runtime.protocol.pooling import PoolingParams
from sheaf_runtime.protocol.sampling import SamplingParams

BlockIds = list[list[int]]  # one list per KV group, in order of position


class NewRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request the worker does not know: just admitted, or resumed after a preemption.

    ``token_ids`` holds the prompt and, on resume, every token committed so far. ``num_computed_tokens`` are
    already in the cache (prefix hit). ``sampling.seed`` is never None here. ``num_prompt_tokens`` fixes the
    output position that randomness is counted from, so that a resumed request draws the same numbers.
    With ``pooling`` its hidden states are pooled where a token would be sampled. ``adapter`` is the id of one
    that is loaded. ``copied_pages``, as (from, to), come before the forwards of the step: the last tokens
    that are in the cache are in another request's page, which goes on in another way.
    """

    req_id: int
    epoch: int
    token_ids: list[int]
    num_prompt_tokens: int
    num_computed_tokens: int
    sampling: SamplingParams
    block_ids: BlockIds
    pooling: PoolingParams | None = None
    adapter: int | None = None
    copied_pages: list[tuple[int, int]] = []


class Scheduled(msgspec.Struct, frozen=True, kw_only=True):
    """``num_tokens`` more tokens of a known request are computed in this step, from position ``start``.

    ``new_block_ids`` are appended to its block table first (empty for a ``NewRequest`` of the same plan,
    whose blocks came with it). ``sample`` is True when the chunk reaches the request's last token; the
    token sampled then is appended to the worker's mirror on the device and is the next step's input, so
    the host need not have seen it.

    ``draft_token_ids`` are the last of the ``num_tokens``: what may follow the request's last token. A token
    is sampled after each of them and before; those count up to the first that is not the draft. No other step
    with this request is launched until the result is known.
    """

    req_id: int
    epoch: int
    start: int
    num_tokens: int
    new_block_ids: BlockIds
    sample: bool
    draft_token_ids: list[int] = []


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One step. ``ended`` (finished, aborted or preempted) is applied before ``new``, ``new`` before
    ``scheduled``. A plan without ``scheduled`` is legal and runs no forward."""

    step: int
    ended: list[int]
    new: list[NewRequest]
    scheduled: list[Scheduled]


class SampledTokens(msgspec.Struct, frozen=True, kw_only=True):
    """0..k tokens of one request; results with a stale epoch are dropped by the engine. ``error`` says why
    there can be none, which ends this request and no other."""

    req_id: int
    epoch: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] = []
    error: str | None = None


class ScoredTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Log-probabilities of prompt tokens, in order from where the last step ended."""

    req_id: int
    epoch: int
    logprobs: list[TokenLogprobs]


class PooledVector(msgspec.Struct, frozen=True, kw_only=True):
    """What a pooling request gets, or why it gets nothing."""

    req_id: int
    epoch: int
    vector: bytes | None
    error: str | None = None


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """``seconds`` that the device was busy with the step; None where nobody measured."""

    step: int
    sampled: list[SampledTokens]
    scored: list[ScoredTokens] = []
    pooled: list[PooledVector] = []
    seconds: float | None = None


class KVGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Layers that share one block table. ``kind`` "full", "window" with ``window`` tokens kept, or "chunk":
    a token sees those before it from the last multiple of ``chunk`` on, which is one of the page's size too.

    ``page_bytes`` are those of a page in the pool, which all groups share: keys and values of as many layers
    as the largest group has.
    """

    kind: str
    layers: tuple[int, ...]
    page_bytes: int
    window: int | None = None
    chunk: int | None = None

    def first_seen(self, position: int) -> int:
        """The first position that the token at ``position`` attends to; later ones see none before it."""
        if self.chunk is not None:
            return position // self.chunk * self.chunk
        return 0 if self.window is None else max(0, position - self.window + 1)

    def most_pages(self, num_tokens: int, *, block_size: int, in_flight_tokens: int) -> int:
        """Pages that a request of ``num_tokens`` tokens holds at most at one time: those of the window or the
        chunk and of what is launched and not yet committed, where there is one."""
        pages = -(-num_tokens // block_size)
        if self.chunk is not None:
            return min(pages, -(-(self.chunk - 1 + in_flight_tokens) // block_size))
        if self.window is None:
            return pages
        return min(pages, -(-(self.window - 1 + in_flight_tokens) // block_size) + 1)
