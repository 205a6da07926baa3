"""Which requests can never run, judged before they are accepted. Pure; messages say what to change."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sheaf_runtime.protocol.messages import AddRequest


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_model_len`` is the model's (or the flag's); ``pool_tokens`` the longest request that the empty
    block pool can hold. Both count prompt and output."""

    vocab_size: int
    max_model_len: int
    pool_tokens: int


@dataclass(frozen=True, slots=True)
class Refusal:
    message: str
    param: str | None = None


def refuse(request: AddRequest, limits: Limits) -> Refusal | None:
    """Why ``request`` is invalid, or None."""
    return (
        _refuse_prompt(request, limits)
        or _refuse_sampling(request, limits)
        or _refuse_length(request, limits)
    )


def _refuse_prompt(request: AddRequest, limits: Limits) -> Refusal | None:
    prompt = request.prompt_token_ids
    if not prompt:
        return Refusal("The prompt is empty; it needs at least one token.", "prompt")
    lowest, highest = min(prompt), max(prompt)
    if lowest < 0 or highest >= limits.vocab_size:
        bad = lowest if lowest < 0 else highest
        return Refusal(
            f"Token id {bad} is out of the vocabulary: ids are 0 to {limits.vocab_size - 1}.", "prompt"
        )
    return None


def _refuse_sampling(request: AddRequest, limits: Limits) -> Refusal | None:
    s = request.sampling
    checks = (
        ("temperature", math.isfinite(s.temperature) and s.temperature >= 0, "a finite number, 0 or more"),
        ("top_p", 0 < s.top_p <= 1, "above 0 and at most 1"),
        ("top_k", s.top_k >= 0, "0 (off) or more"),
        ("seed", s.seed is None or -(2**63) <= s.seed < 2**63, "a signed 64-bit integer"),
        ("max_tokens", s.max_tokens >= 1, "at least 1"),
        ("min_tokens", 0 <= s.min_tokens <= s.max_tokens, f"between 0 and max_tokens ({s.max_tokens})"),
    )
    for name, ok, rule in checks:
        if not ok:
            return Refusal(f"{name} must be {rule}, got {getattr(s, name)}.", name)
    for token_id in s.stop_token_ids:
        if not 0 <= token_id < limits.vocab_size:
            return Refusal(
                f"stop_token_ids: {token_id} is out of the vocabulary: ids are 0 to {limits.vocab_size - 1}.",
                "stop_token_ids",
            )
    return None


def _refuse_length(request: AddRequest, limits: Limits) -> Refusal | None:
    num_prompt, max_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
    total = num_prompt + max_tokens
    if total > limits.max_model_len:
        asked = (
            f"This model's maximum context length is {limits.max_model_len} tokens. However, you requested "
            f"{total} tokens ({num_prompt} in the prompt, {max_tokens} for the output). "
        )
        if num_prompt >= limits.max_model_len:
            return Refusal(
                asked + f"Shorten the prompt to at most {limits.max_model_len - 1} tokens.", "prompt"
            )
        return Refusal(
            asked + f"Shorten the prompt or set max_tokens to at most {limits.max_model_len - num_prompt}.",
            "max_tokens",
        )
    # The last output token takes no slot.
    if total - 1 > limits.pool_tokens:
        return Refusal(
            f"The request needs KV cache for {total - 1} tokens ({num_prompt} of prompt, {max_tokens} of "
            f"output), but the whole cache holds {limits.pool_tokens}. Shorten the prompt, lower "
            "max_tokens, or give the server more KV cache.",
            "max_tokens" if num_prompt <= limits.pool_tokens else "prompt",
        )
    return None
