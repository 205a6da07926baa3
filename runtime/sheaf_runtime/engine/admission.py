"""Which requests can never run, judged before they are accepted. Pure; messages say what to change."""

from __future__ import annotations

from dataclasses import dataclass

from sheaf_runtime.protocol.limits import Refusal, refuse_ids, refuse_length, refuse_number
from sheaf_runtime.protocol.messages import AddRequest
from sheaf_runtime.protocol.pooling import PoolingParams

NUMBERS = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "min_tokens"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "logprobs", "prompt_logprobs"),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_model_len`` is the model's (or the flag's); ``pool_tokens`` the longest request that the empty
    block pool can hold. Both count prompt and output. ``generates`` and ``pooled_size`` say what can come
    out: tokens, and vectors of that size."""

    vocab_size: int
    max_model_len: int
    pool_tokens: int
    generates: bool = True
    pooled_size: int | None = None


def refuse(request: AddRequest, limits: Limits) -> Refusal | None:
    """Why ``request`` is invalid, or None."""
    if request.pooling is not None:
        return _refuse_prompt(request, limits) or _refuse_pooling(request, request.pooling, limits)
    if not limits.generates:
        return Refusal("This model generates no text: use /v1/embeddings, /rerank or /score.", "model")
    return (
        _refuse_prompt(request, limits)
        or _refuse_sampling(request, limits)
        or _refuse_length(request, limits)
    )


def _refuse_prompt(request: AddRequest, limits: Limits) -> Refusal | None:
    prompt = request.prompt_token_ids
    if not prompt:
        return Refusal("The prompt is empty; it needs at least one token.", "prompt")
    return refuse_ids("prompt", (min(prompt), max(prompt)), limits.vocab_size)


def _refuse_pooling(request: AddRequest, pooling: PoolingParams, limits: Limits) -> Refusal | None:
    size, dimensions = limits.pooled_size, pooling.dimensions
    if size is None:
        return Refusal("This model generates text; it makes no embeddings and no scores.", "model")
    if dimensions is not None and not 1 <= dimensions <= size:
        return Refusal(f"dimensions must be from 1 to {size}, got {dimensions}.", "dimensions")
    return refuse_length(min(limits.max_model_len, limits.pool_tokens), len(request.prompt_token_ids), 0)


def _refuse_sampling(request: AddRequest, limits: Limits) -> Refusal | None:
    s = request.sampling
    for name in NUMBERS:
        value = getattr(s, name)
        if value is not None and (refusal := refuse_number(name, value)):
            return refusal
    if s.max_tokens < 1:
        return Refusal("max_tokens must be at least 1, got 0.", "max_tokens")
    if s.min_tokens > s.max_tokens:
        return Refusal(
            f"min_tokens must be at most max_tokens ({s.max_tokens}), got {s.min_tokens}.", "min_tokens"
        )
    for value in s.logit_bias.values():
        if refusal := refuse_number("logit_bias", value):
            return refusal
    if s.allowed_token_ids == ():
        return Refusal("allowed_token_ids is empty: nothing could come out.", "allowed_token_ids")
    return (
        refuse_ids("stop_token_ids", s.stop_token_ids, limits.vocab_size)
        or refuse_ids("logit_bias", s.logit_bias, limits.vocab_size)
        or refuse_ids("allowed_token_ids", s.allowed_token_ids or (), limits.vocab_size)
        or refuse_ids("bad_words", (id_ for word in s.bad_words for id_ in word), limits.vocab_size)
    )


def _refuse_length(request: AddRequest, limits: Limits) -> Refusal | None:
    num_prompt, max_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
    if refusal := refuse_length(limits.max_model_len, num_prompt, max_tokens):
        return refusal
    total = num_prompt + max_tokens
    # The last output token takes no slot.
    if total - 1 > limits.pool_tokens:
        return Refusal(
            f"The request needs KV cache for {total - 1} tokens ({num_prompt} of prompt, {max_tokens} of "
            f"output), but the whole cache holds {limits.pool_tokens}. Shorten the prompt, lower "
            "max_tokens, or give the server more KV cache.",
            "max_tokens" if num_prompt <= limits.pool_tokens else "prompt",
        )
    return None
