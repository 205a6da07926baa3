"""What comes of committed steps, and what is counted of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from sheaf_runtime.engine.request import Request
from sheaf_runtime.protocol.messages import FinishReason, TokenLogprobs

TIMED_OUT = "the request's timeout has passed, or would have before its first token"


@dataclass(slots=True)
class Counters:
    """Monotonic, in tokens where not said otherwise."""

    steps: int = 0  # committed
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    preemptions: int = 0  # requests
    drafted: int = 0  # requests of steps that had drafts
    draft_tokens: int = 0
    accepted_at: list[int] = field(default_factory=list)  # drafts that came, by their place


@dataclass(frozen=True, slots=True)
class Output:
    """Tokens of one request committed by one step."""

    request: Request
    token_ids: list[int]
    finish_reason: FinishReason | None
    stop_token_id: int | None
    first: bool  # the request had no output before
    logprobs: list[TokenLogprobs]
    error: str | None = None
    pooled: bytes | None = None
