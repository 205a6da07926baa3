"""Parameters that exist elsewhere but not here: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The values that ask for nothing are accepted.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "verbosity": (),
    # vLLM's
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "structured_outputs": (),
    # the other endpoint's
    "top_logprobs": (0,),
    "echo": (False,),
    "tools": (),
    "tool_choice": ("none",),
    "parallel_tool_calls": (True, False),
    "reasoning_effort": ("none",),
    "include_reasoning": (True,),
}
# Bookkeeping of OpenAI's own service; nothing about the answer depends on it.
HARMLESS = frozenset(
    {
        "user",
        "store",
        "metadata",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
)


class ParameterError(ValueError):
    """Says which field is wrong where pydantic only knows that the whole body is."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}{' ' if message.startswith('must ') else ': '}{message}")
        self.param = param


def refuse_unsupported(data: Any, known: Any) -> Any:
    """Drops nulls and harmless parameters, and names the first one that would otherwise be ignored."""
    if not isinstance(data, dict):
        return data
    kept = {}
    for name, value in data.items():
        if value is None or name in HARMLESS:
            continue
        if name in known or name not in UNSUPPORTED:
            kept[name] = value  # pydantic says which are unknown
        elif not any(_same(value, neutral) for neutral in UNSUPPORTED[name]):
            raise ParameterError(name, "not supported; leave it out")
    return kept


def _same(value: Any, neutral: Any) -> bool:
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral
