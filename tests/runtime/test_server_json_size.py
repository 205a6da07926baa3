"""How much a body's JSON may hold: counted without reading it, and never by what is in its strings."""

from __future__ import annotations

import json

import pytest
from sheaf_runtime.server.json_size import MOST_PARTS, MOST_STRINGS, MOST_VALUES, may_be_too_many, too_many


def both(text: bytes) -> str | None:
    """As the server asks: the exact question only if the quick one is not enough."""
    return too_many(text) if may_be_too_many(text) else None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"[" + b"5," * MOST_VALUES + b"5,5]", "values"),
        (b'["' + b'","' * (MOST_STRINGS + MOST_VALUES) + b'"]', "strings"),
        (b"[" + b"[]," * MOST_PARTS + b"[]]", "lists"),
        (b"[" + b"{}," * MOST_PARTS + b"{}]", "objects"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(MOST_PARTS)) + b"}", "keys"),
        ((b"[" * 1000 + b"]" * 1000 + b",") * 100, "lists"),
        (b'["\\\\",' + b"5," * MOST_VALUES + b"5,5]", "values"),  # the backslash is escaped, the quote an end
    ],
    ids=["numbers", "strings", "lists", "objects", "keys", "deep", "behind a string"],
)
def test_too_much_is_named(text: bytes, what: str) -> None:
    assert what in (both(text) or "")


@pytest.mark.parametrize(
    "string",
    ["1,2,3\n", "[{:", 'he said "[[[[,"', "a\\", '\\",[', "\\\\\\", "ключ: [значение],"],
)
def test_what_is_in_strings_does_not_count(string: str) -> None:
    for ascii_ in (True, False):
        assert both(json.dumps({"prompt": string * MOST_VALUES}, ensure_ascii=ascii_).encode()) is None


def test_as_much_as_is_allowed_passes() -> None:
    assert both(json.dumps([5] * MOST_VALUES, separators=(",", ":")).encode()) is None
    assert both(json.dumps([[]] * (MOST_PARTS - 1)).encode()) is None
