"""How much a body's JSON may hold: counted without reading it, and never by what is in its strings."""

from __future__ import annotations

import json

import pytest
from sheaf_runtime.server.json_size import MOST_PARTS, MOST_STRINGS, MOST_VALUES, may_be_too_many, too_many

CONTEXT = 100


def both(text: bytes, context: int = CONTEXT) -> str | None:
    """As the server asks: the exact question only if the quick one is not enough."""
    return too_many(text, context) if may_be_too_many(text, context) else None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"[" + b"5," * (MOST_VALUES + CONTEXT) + b"5,5]", "values"),
        (b'["' + b'","' * (MOST_STRINGS + MOST_VALUES) + b'"]', "strings"),
        (b"[" + b"[]," * MOST_PARTS + b"[]]", "lists"),
        (b"[" + b"{}," * MOST_PARTS + b"{}]", "objects"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(MOST_PARTS)) + b"}", "keys"),
        ((b"[" * 1000 + b"]" * 1000 + b",") * 100, "lists"),
        # The backslash is escaped, the quote an end.
        (b'["\\\\",' + b"5," * (MOST_VALUES + CONTEXT) + b"5]", "values"),
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


def test_the_ids_of_a_prompt_that_fits_a_long_context_are_not_too_many() -> None:
    ids = json.dumps({"prompt": [5] * (2 * MOST_VALUES)}, separators=(",", ":")).encode()
    assert both(ids, 2 * MOST_VALUES) is None
    assert both(ids) == f"more than {MOST_VALUES + CONTEXT} values"
