"""How one request's tokens are chosen and when it ends."""

from __future__ import annotations

import msgspec

from sheaf_runtime.protocol.grammar import Grammar

# Below this temperature the distribution is a single token in float32: treat it as greedy.
GREEDY_BELOW = 1e-5


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling parameters as the engine needs them: everything here is about token ids.

    Stop *strings* are not here: only the API process (or ``LLM``) sees text, finds them there and
    aborts the request.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 or less keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1].
        min_p: keep tokens at least this likely, relative to the likeliest one.
        frequency_penalty, presence_penalty: taken off the logit of a token for each time, or once if, it has
            come out.
        repetition_penalty: divides (multiplies, if negative) the logit of a token of prompt or output.
        logit_bias: added to the logits of these ids.
        allowed_token_ids: nothing else comes out, if given.
        bad_words: sequences of ids that must not come out.
        seed: equal seeds give equal tokens whatever else is in the batch; ``None`` lets the engine
            draw one for the request.
        max_tokens: most tokens to generate, at least 1.
        min_tokens: no end token is accepted before this many.
        stop_token_ids: ids that end the request, beside the model's own end ids. The id that ended it
            is the last output token.
        ignore_eos: the model's own end ids do not end the request.
        logprobs: report the log-probability of each output token and of this many of the likeliest tokens at
            its place, by the model's own logits; None reports nothing.
        prompt_logprobs: the same for the tokens of the prompt.
        grammar: what the text has to look like; an end token comes only where it may end.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW
