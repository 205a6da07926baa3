"""Parameters that exist elsewhere but not here: refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The values that ask for nothing are accepted.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    # vLLM's
    "use_beam_search": (False,),
    "length_penalty": (1,),
    # the other endpoint's
    "top_logprobs": (0,),
    "echo": (False,),
    "tools": (),
    "tool_choice": ("none",),
    "parallel_tool_calls": (True, False),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "include_reasoning": (True,),
}
# vLLM had them up to 0.11; what to write now.
REPLACED: Mapping[str, str] = {
    "guided_json": 'write "structured_outputs": {"json": ...}',
    "guided_regex": 'write "structured_outputs": {"regex": ...}',
    "guided_choice": 'write "structured_outputs": {"choice": ...}',
    "guided_grammar": 'write "structured_outputs": {"grammar": ...}',
    "structural_tag": 'write "structured_outputs": {"structural_tag": ...}',
    "guided_whitespace_pattern": "leave it out: blanks between the parts of JSON are few as it is",
    "guided_decoding_backend": "leave it out: there is one",
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
        if value is None or (name in HARMLESS and name not in known):
            continue
        if name in REPLACED:
            raise ParameterError(name, f"not supported; {REPLACED[name]}")
        if name in known or name not in UNSUPPORTED:
            kept[name] = value  # pydantic says which are unknown
        elif not any(_same(value, neutral) for neutral in UNSUPPORTED[name]):
            raise ParameterError(name, "not supported; leave it out")
    return kept


def _same(value: Any, neutral: Any) -> bool:
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral
