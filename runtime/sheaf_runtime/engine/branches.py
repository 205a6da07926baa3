"""Where prompts part: the cached page that begins as a prompt goes on, and then goes another way."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence

_Page = tuple[bytes, bytes]  # its tokens, four bytes each, and its digest


class Branches:
    """Pages by the digest of the page before them, in the order of their bytes: those that have most of a
    text's first tokens in common with it are its neighbours there, however many pages there are."""

    def __init__(self) -> None:
        self._behind: dict[bytes, list[_Page]] = {}
        self._places: dict[bytes, tuple[bytes, bytes]] = {}  # digest -> the one before it, and the tokens

    def __len__(self) -> int:
        return len(self._places)

    def add(self, before: bytes, token_ids: Sequence[int], digest: bytes) -> None:
        tokens = array("I", token_ids).tobytes()
        self._places[digest] = before, tokens
        insort(self._behind.setdefault(before, []), (tokens, digest))

    def discard(self, digest: bytes) -> None:
        if (place := self._places.pop(digest, None)) is None:
            return
        before, tokens = place
        pages = self._behind[before]
        del pages[bisect_left(pages, (tokens, digest))]
        if not pages:
            del self._behind[before]

    def clear(self) -> None:
        self._behind.clear()
        self._places.clear()

    def closest(self, before: bytes, token_ids: Sequence[int]) -> tuple[int, bytes] | None:
        """Of the pages behind ``before`` one with most of the first ``token_ids`` in common: their number and
        its digest. None where no page has even one."""
        pages = self._behind.get(before)
        if pages is None:
            return None
        tokens = array("I", token_ids).tobytes()
        at = bisect_left(pages, (tokens, b""))
        shared, digest = max((_shared(tokens, page[0]), page[1]) for page in pages[max(0, at - 1) : at + 1])
        return (shared, digest) if shared else None


def _shared(a: bytes, b: bytes) -> int:
    """Tokens that both begin with."""
    both = min(len(a), len(b)) // 4
    return next((i for i in range(both) if a[4 * i : 4 * i + 4] != b[4 * i : 4 * i + 4]), both)
