"""The bounds of what a request may ask for: one table, one wording, for the API's edge and for the engine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MOST = 2**31 - 1  # what every array that the engine fills can hold


@dataclass(frozen=True, slots=True)
class Bound:
    """A number from ``low`` to ``high``; without ``low`` itself where it is ``above``."""

    low: float
    high: float
    whole: bool = True
    above: bool = False

    def problem(self, value: object) -> str | None:
        """What is wrong with ``value``, to be read behind the field's name; None if nothing is."""
        kinds = (int,) if self.whole else (int, float)
        if type(value) in kinds:
            assert isinstance(value, int | float)
            if math.isfinite(value) if isinstance(value, float) else True:
                enough = value > self.low if self.above else value >= self.low
                if enough and value <= self.high:
                    return None
        shown = repr(value)
        shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
        return f"must be {self.words}, got {shown}"

    @property
    def words(self) -> str:
        noun = "a whole number" if self.whole else "a number"
        if self.above:
            return f"{noun} above {self.low:g} and at most {self.high:g}"
        return f"{noun} from {self.low} to {self.high}"

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema."""
        low = "exclusiveMinimum" if self.above else "minimum"
        return {"type": "integer" if self.whole else "number", low: self.low, "maximum": self.high}


BOUNDS: Mapping[str, Bound] = {
    "n": Bound(1, 128),
    "best_of": Bound(1, 128),
    "max_tokens": Bound(0, MOST),
    "max_completion_tokens": Bound(1, MOST),
    "min_tokens": Bound(0, MOST),
    "temperature": Bound(0, 2, whole=False),
    "top_p": Bound(0, 1, whole=False, above=True),
    "top_k": Bound(-1, MOST),
    "min_p": Bound(0, 1, whole=False),
    "frequency_penalty": Bound(-2, 2, whole=False),
    "presence_penalty": Bound(-2, 2, whole=False),
    "repetition_penalty": Bound(0, 100, whole=False, above=True),
    "logit_bias": Bound(-100, 100, whole=False),  # each value
    "seed": Bound(-(2**63), 2**63 - 1),
    "priority": Bound(-MOST - 1, MOST),
    "timeout": Bound(0, MOST, whole=False, above=True),
    "logprobs": Bound(0, 20),
    "top_logprobs": Bound(0, 20),
    "prompt_logprobs": Bound(0, 20),
    "truncate_prompt_tokens": Bound(-1, MOST),
    "dimensions": Bound(1, MOST),
    "top_n": Bound(0, MOST),
    "token id": Bound(0, MOST),
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """``param`` is the field that has to change."""

    message: str
    param: str | None = None
    code: str | None = None


def refuse_number(name: str, value: object) -> Refusal | None:
    problem = BOUNDS[name].problem(value)
    return Refusal(f"{name} {problem}.", name) if problem else None


def refuse_ids(name: str, ids: Iterable[int], vocab_size: int) -> Refusal | None:
    """For token ids that the model does not have."""
    for id_ in ids:
        if not 0 <= id_ < vocab_size:
            return Refusal(f"{name}: token id {id_} is outside the vocabulary, 0 to {vocab_size - 1}.", name)
    return None


def refuse_length(
    limit: int,
    prompt_tokens: int,
    max_tokens: int,
    *,
    param: str = "prompt",
    name: str | None = None,
    at_least: bool = False,
) -> Refusal | None:
    """For a prompt and an output that are longer than the context together. ``name`` says which of several
    prompts of the field ``param`` it is. ``at_least``: the prompt has not been counted to its end."""
    total = prompt_tokens + max_tokens
    if total <= limit:
        return None
    about = "at least " if at_least else ""
    if max_tokens == 0:
        which = name or f"the {param}"
        return Refusal(
            f"This model's maximum context length is {limit} tokens. However, {which} has {about}{total} "
            "tokens. Please shorten it, or set truncate_prompt_tokens.",
            param,
            "context_length_exceeded",
        )
    return Refusal(
        f"This model's maximum context length is {limit} tokens. However, you requested {about}{total} "
        f"tokens ({about}{prompt_tokens} in the {param}, {max_tokens} in the completion). Please reduce the "
        f"length of the {param} or completion.",
        param,
        "context_length_exceeded",
    )
