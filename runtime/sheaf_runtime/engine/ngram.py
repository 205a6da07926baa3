"""What may come next of a request, by what followed the same words before (prompt lookup). Pure."""

from __future__ import annotations

SLICE = 2048  # tokens that are put into the index at a time, so that a long prompt holds nobody up


class NgramProposer:
    """Of one request. For each n from ``longest`` down to ``shortest``: where what followed n tokens begins,
    for their latest occurrence. Tokens go in as they come; a look at the end costs the same for any length.

    Keys are hashes, so what is found is compared. About 100 bytes for each token and n.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self._places: dict[int, dict[int, int]] = {n: {} for n in range(longest, shortest - 1, -1)}
        self._indexed = 0  # n-grams whose last token is before this position

    def follow(self, token_ids: list[int]) -> bool:
        """Take in at most ``SLICE`` more of the request's tokens; whether that was all."""
        start = self._indexed
        # The end itself is no occurrence: nothing has followed it yet.
        stop = min(len(token_ids) - 1, start + SLICE)
        if stop <= start:
            return True
        for n, places in self._places.items():
            first = max(start - n + 1, 0)
            words = zip(*(token_ids[first + i : stop - n + 1 + i] for i in range(n)), strict=False)
            places.update(zip(map(hash, words), range(first + n, stop + 1), strict=False))
        self._indexed = stop
        return stop == len(token_ids) - 1

    def propose(self, token_ids: list[int], most: int) -> list[int]:
        """``most`` tokens that may follow ``token_ids``, all of which were taken in; none where nothing was
        found. What runs into the end goes on as if it was repeated."""
        for n, places in self._places.items():
            words = token_ids[-n:]
            start = places.get(hash(tuple(words)))
            if start is not None and token_ids[start - n : start] == words:
                period = len(token_ids) - start
                return [token_ids[start + i % period] for i in range(most)]
        return []
