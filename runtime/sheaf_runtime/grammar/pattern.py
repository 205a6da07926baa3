"""Regular expressions that are held as they are meant."""

from __future__ import annotations

import re
from typing import Any

from sheaf_runtime.grammar.errors import GrammarError

MAX_REPEAT = 10_000
MAX_PATTERN = 4096
_REPEAT = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_GROUPS = {
    "(?=": "lookahead",
    "(?!": "lookahead",
    "(?<=": "lookbehind",
    "(?<!": "lookbehind",
    "(?P=": "back reference",
}


def check_regex(pattern: Any, at: str) -> str:
    """Raises ``GrammarError`` for what xgrammar would pass over or what grows without bounds."""
    if not isinstance(pattern, str):
        raise GrammarError(f"{at}: must be a string")
    if len(pattern) > MAX_PATTERN:
        raise GrammarError(f"{at}: takes at most {MAX_PATTERN} characters, got {len(pattern)}")
    plain = re.sub(r"\\\\", "", pattern)
    for opening, name in _GROUPS.items():
        if opening in plain:
            raise GrammarError(f"{at}: a {name}, {opening!r}, is not held; write it without")
    if "(?i" in plain:
        raise GrammarError(f"{at}: flags, '(?i', are not held; write both cases")
    total = 1
    for match in _REPEAT.finditer(plain):
        total *= max(1, int(match[2] or match[1]))
    if total > MAX_REPEAT:
        raise GrammarError(f"{at}: repetitions multiply to more than {MAX_REPEAT}; make them smaller")
    bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", "x", pattern)
    if re.search(r"[^(|:]\^|\$[^)|]", bare):
        raise GrammarError(f"{at}: '^' and '$' are held at the ends of the pattern; write it so")
    return pattern


def check_pattern(pattern: Any, at: str) -> str:
    """A pattern of strings in JSON: in ASCII, and without what JSON would have to escape."""
    pattern = check_regex(pattern, at)
    bare = re.sub(r"\[\^(?:\\.|[^\]\\])*\]", "x", pattern)
    if '"' in bare or "\\\\" in bare or re.search(r"\\[nrtfv]", bare):
        raise GrammarError(f"{at}: a quote, backslash or line break in a pattern is not held; leave it out")
    return "".join(c if " " <= c <= "~" else _escaped(c) for c in _TOKEN.sub(_counted, pattern))


# What may stand in front of a quantifier, whole, or a quantifier with the mark of a lazy one.
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[:P]?|([*+?]|\{\d+,?\d*\})\??", re.DOTALL)


def _counted(match: re.Match[str]) -> str:
    """``?`` as ``{0,1}``: xgrammar lets a group that ends in a repetition be entered at its end by ``?``.
    That a quantifier is lazy does not change what fits."""
    if match[1] is None:
        return match[0]
    return "{0,1}" if match[1] == "?" else match[1]


def _escaped(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\u{{{ord(character):x}}}"
