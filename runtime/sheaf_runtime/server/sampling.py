"""From the fields of a request to the engine's sampling parameters."""

from __future__ import annotations

from sheaf_runtime.protocol.limits import Refusal, refuse_ids, refuse_length
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.schemas import CompletionRequest, Generate
from sheaf_runtime.server.service import Service
from sheaf_runtime.text import Tokenizer

DRAW_A_SEED = -1  # vLLM's


def refuse(refusal: Refusal | None) -> None:
    """Raises it as an ``ApiError`` 400."""
    if refusal is not None:
        raise ApiError(400, refusal.message, param=refusal.param, code=refusal.code)


def sampling_params(
    service: Service,
    body: Generate,
    prompt_tokens: int,
    *,
    max_tokens: int | None,
    default: int | None,
    param: str,
) -> SamplingParams:
    """``max_tokens`` as asked for; without it ``default``, or all that is left of the context.

    Raises ``ApiError`` 400 for what the model cannot do.
    """
    limit, info = service.max_model_len, service.client.info
    assert limit is not None
    assert info is not None
    left = limit - prompt_tokens
    # Scoring a prompt generates one token too, which is not shown.
    refuse(refuse_length(limit, prompt_tokens, max(1, max_tokens or 1), param=param))
    defaults = service.folder.defaults
    most = left if defaults.max_new_tokens is None else min(left, defaults.max_new_tokens)
    max_tokens = min(most, default or left) if max_tokens is None else min(most, max_tokens)
    if body.min_tokens > max(1, max_tokens):
        raise ApiError(
            400,
            f"min_tokens must be at most max_tokens ({max_tokens}), got {body.min_tokens}",
            param="min_tokens",
        )
    if body.allowed_token_ids == []:
        raise ApiError(400, "allowed_token_ids must not be empty", param="allowed_token_ids")
    for name in ("stop_token_ids", "logit_bias", "allowed_token_ids"):
        refuse(refuse_ids(name, getattr(body, name) or (), info.vocab_size))
    if not body.spaces_between_special_tokens and service.folder.tokenizer.spaces_between_specials:
        raise ApiError(
            400,
            "spaces_between_special_tokens: this model's tokenizer always puts them; leave it out",
            param="spaces_between_special_tokens",
        )
    scored = body.prompt_logprobs
    if scored is None and isinstance(body, CompletionRequest) and body.echo:
        scored = body.logprobs
    return SamplingParams(
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        top_k=max(0, defaults.top_k if body.top_k is None else body.top_k),
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        repetition_penalty=(
            defaults.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty
        ),
        logit_bias=body.logit_bias,
        allowed_token_ids=None if body.allowed_token_ids is None else tuple(body.allowed_token_ids),
        bad_words=_bad_words(service.folder.tokenizer, body.bad_words),
        seed=None if body.seed == DRAW_A_SEED else body.seed,
        max_tokens=max(1, max_tokens),
        min_tokens=body.min_tokens,
        stop_token_ids=tuple(body.stop_token_ids),
        ignore_eos=body.ignore_eos,
        logprobs=body.num_logprobs,
        prompt_logprobs=scored,
        grammar=body.constraint,
    )


def _bad_words(tokenizer: Tokenizer, words: list[str]) -> tuple[tuple[int, ...], ...]:
    """Each word as it begins a text and, where those are other tokens, as it follows a blank.

    Raises ``ApiError`` 400 for a word without tokens.
    """
    found: list[tuple[int, ...]] = []
    for word in words:
        bare, spaced = (
            tuple(tokenizer.encode(prefix + word.lstrip(), add_special_tokens=False)) for prefix in ("", " ")
        )
        if not bare:
            raise ApiError(400, f"bad_words: {word!r} has no tokens", param="bad_words")
        found.append(bare)
        if spaced != bare:
            found.append(spaced)
    return tuple(found)
