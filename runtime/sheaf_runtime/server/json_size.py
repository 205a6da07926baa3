"""How many values a JSON text has, without reading it: they take time where strings of any length do not."""

from __future__ import annotations

# What is read and judged in a tenth of a second; messages and schemas of any conversation are far less.
MOST_VALUES = 2**19  # beside the token ids of one prompt, which may fill the context
MOST_STRINGS = 2**17
MOST_PARTS = 2**16  # lists, objects, and their keys
WINDOW = 2**20  # bytes looked at before it is judged whether that is enough
_OTHERS = bytes(set(range(256)) - set(b",[{:"))


def too_many(text: bytes, context: int) -> str | None:
    """What a valid JSON text has too much of, in words. Takes a few milliseconds for each megabyte.

    ``context``: tokens that one prompt may have."""
    # What is in strings does not count. A quote ends one unless an odd number of backslashes is before it.
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 2 * MOST_STRINGS:
        return f"more than {MOST_STRINGS} strings"
    return may_be_too_many(b" ".join(bare.split(b'"')[::2]), context)


def may_be_too_many(text: bytes, context: int) -> str | None:
    """The same, quickly, as if nothing were in strings: None is right, the rest ``too_many`` has to say."""
    most_values = MOST_VALUES + context
    values = parts = 0
    for start in range(0, len(text), WINDOW):
        marks = text[start : start + WINDOW].translate(None, _OTHERS)
        commas = marks.count(b",")
        values += commas
        parts += len(marks) - commas
        if parts > MOST_PARTS:
            return f"more than {MOST_PARTS} lists, objects and keys"
        if values > most_values:
            return f"more than {most_values} values"
    return None
