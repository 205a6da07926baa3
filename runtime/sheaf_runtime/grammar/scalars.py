"""The keywords about strings and numbers, and how many there may be of what."""

from __future__ import annotations

from typing import Any

from sheaf_runtime.grammar.errors import GrammarError
from sheaf_runtime.grammar.keywords import FORMATS
from sheaf_runtime.grammar.pattern import check_pattern

Keywords = dict[str, Any]
MAX_COUNT = 10_000  # of repetitions: minItems, maxLength and the like
WIDEST_STEP = 10_000  # numbers that may be between the bounds of an integer with multipleOf
LARGEST_STEP = 1024


def string(own: Keywords, at: str) -> Keywords:
    """As one pattern."""
    low, high = counts(own, "Length", at)
    given: list[str] = [key for key in ("pattern", "format") if key in own]
    if low or high is not None:
        given.append("minLength" if low else "maxLength")
    if len(given) > 1:
        raise GrammarError(f"{at}: {given[1]!r} beside {given[0]!r} is not held; write one pattern")
    if "pattern" in own:
        return {"pattern": check_pattern(own["pattern"], f"{at}/pattern")}
    if "format" in own:
        if own["format"] not in FORMATS:
            raise GrammarError(f"{at}/format: {shown(own['format'])} is not held; {', '.join(FORMATS)} are")
        return {"pattern": check_pattern(FORMATS[own["format"]], at)}
    if low or high is not None:
        # Not as lengths: xgrammar's strings of a length may hold control characters.
        return {"pattern": f".{{{low},{'' if high is None else high}}}"}
    return {}


def integer(own: Keywords, at: str) -> Keywords:
    """Its bounds, inclusive, and its step."""
    low, high = _bounds(own, at, whole=True)
    step = own.get("multipleOf", 1)
    if not is_a(step, "integer") or not 1 <= step <= LARGEST_STEP:
        raise GrammarError(f"{at}/multipleOf: must be a whole number from 1 to {LARGEST_STEP} to be held")
    if step != 1 and (low is None) != (high is None):
        raise GrammarError(f"{at}: 'multipleOf' is held with both bounds or none")
    if step != 1 and low is not None and high is not None and high - low >= WIDEST_STEP:
        raise GrammarError(f"{at}: 'multipleOf' is held for at most {WIDEST_STEP} numbers in its bounds")
    held = {"minimum": low, "maximum": high, "multipleOf": None if step == 1 else int(step)}
    return {key: value for key, value in held.items() if value is not None}


def number(own: Keywords, at: str) -> Keywords:
    """Its bounds as they are, if they can be held."""
    _bounds(own, at, whole=False)
    for key, value in own.items():
        if value and not 1e-4 <= abs(value) <= 1e15:
            raise GrammarError(f"{at}/{key}: must be 0 or from 0.0001 to 1e15 to be held")
        if round(value, 6) != value:
            raise GrammarError(f"{at}/{key}: is held to six decimals")
    return own


def counts(own: Keywords, of: str, at: str) -> tuple[int, int | None]:
    """What ``minX`` and ``maxX`` say."""
    low, high = own.get(f"min{of}", 0), own.get(f"max{of}")
    for name, value in ((f"min{of}", low), (f"max{of}", high)):
        if value is not None and not (is_a(value, "integer") and 0 <= value <= MAX_COUNT):
            raise GrammarError(f"{at}/{name}: must be a whole number from 0 to {MAX_COUNT} to be held")
    if high is not None and low > high:
        raise GrammarError(f"{at}: min{of} is above max{of}: nothing fits")
    return int(low), None if high is None else int(high)


def _bounds(own: Keywords, at: str, *, whole: bool) -> tuple[int | None, int | None]:
    """The bounds of an integer, inclusive; those of a number are only judged."""
    for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if key in own and not is_a(own[key], "number"):
            raise GrammarError(f"{at}/{key}: must be a number")
    if not whole:
        return None, None
    lows = [-(-v // 1) if k == "minimum" else v // 1 + 1 for k, v in own.items() if k.endswith("inimum")]
    highs = [v // 1 if k == "maximum" else -(-v // 1) - 1 for k, v in own.items() if k.endswith("aximum")]
    low, high = (int(max(lows)) if lows else None), (int(min(highs)) if highs else None)
    if any(v is not None and abs(v) >= 2**62 for v in (low, high)):
        raise GrammarError(f"{at}: bounds of integers must be within 2**62 to be held")
    if low is not None and high is not None and low > high:
        raise GrammarError(f"{at}: the minimum is above the maximum: nothing fits")
    return low, high


def is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and value == value // 1)
    return kind == {str: "string", list: "array", dict: "object", type(None): "null"}.get(type(value))


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
