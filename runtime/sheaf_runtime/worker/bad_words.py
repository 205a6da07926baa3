"""Words of several tokens that must not come out: the last is banned where the others stand before it.

Legend: W words of the running requests or of the step, L the length of the longest of them but one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BadWords:
    """Those whose last token could come now. ``last_W`` must not follow ``prefix_WL``, the tokens now in
    ``cells_WL`` of the mirror (-1: no token, matches); ``at_W`` is the row of the step."""

    at_W: Int64
    last_W: Int64
    prefix_WL: Int64
    cells_WL: Int64

    def of(self, row: int) -> BadWords | None:
        """Those of one row of the step, which is the only one then."""
        mine = np.flatnonzero(self.at_W == row)
        if not mine.size:
            return None
        return BadWords(self.at_W[mine] - row, self.last_W[mine], self.prefix_WL[mine], self.cells_WL[mine])


class BadWordTable:
    """The words of all rows in one table, made anew when a request with some enters or leaves."""

    def __init__(self, width: int) -> None:
        """``width``: cells of a row of the mirror."""
        self._width = width
        self._words: dict[int, list[tuple[int, ...]]] = {}
        self._tabulate()

    def enter(self, row: int, words: Sequence[tuple[int, ...]]) -> None:
        """Single tokens are a bias, and left out."""
        longer = [word for word in words if len(word) > 1]
        if longer:
            self._words[row] = longer
            self._tabulate()

    def leave(self, row: int) -> None:
        if self._words.pop(row, None) is not None:
            self._tabulate()

    def _tabulate(self) -> None:
        listed = [(row, word) for row, words in self._words.items() for word in words]
        self._row_W = np.array([row for row, _ in listed], np.int64)
        self._last_W = np.array([word[-1] for _, word in listed], np.int64)
        self._size_W = np.array([len(word) - 1 for _, word in listed], np.int64)
        longest = max(self._size_W, default=0)
        self._prefix_WL = np.full((len(listed), longest), -1, np.int64)
        for w, (_, word) in enumerate(listed):
            self._prefix_WL[w, longest - len(word) + 1 :] = word[:-1]

    def find(self, rows_S: Int64, position_S: Int64, length_S: Int64) -> BadWords | None:
        """``length_S`` tokens are there, ``position_S`` of them output."""
        if not self._row_W.size:
            return None
        order = np.argsort(rows_S, kind="stable")
        first = np.searchsorted(rows_S[order], self._row_W)
        count = np.searchsorted(rows_S[order], self._row_W, side="right") - first
        # One that has drafts is in the step several times, and so are its words.
        word = np.repeat(np.arange(len(count)), count)
        at_W = order[(first - np.cumsum(count) + count)[word] + np.arange(len(word))]
        come = position_S[at_W] >= self._size_W[word]
        found, at_W = word[come], at_W[come]
        if not found.size:
            return None
        prefix_WL = self._prefix_WL[found]
        behind = np.arange(-prefix_WL.shape[1], 0)
        cells_WL = (self._row_W[found] * self._width + length_S[at_W])[:, None] + behind
        return BadWords(at_W, self._last_W[found], prefix_WL, np.where(prefix_WL < 0, -1, cells_WL))


def ban(logits_SV: Tensor, mirror: Tensor, words: BadWords) -> None:
    """Write -inf over the last tokens of words whose others have come. ``mirror`` has token ids by cell."""

    def there(array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(logits_SV.device, non_blocking=True)

    want, cells = there(words.prefix_WL), there(words.cells_WL)
    ends_W = ((mirror[cells.clamp(min=0)] == want) | (cells < 0)).all(-1)
    ban_W = torch.where(ends_W, -torch.inf, 0.0).to(logits_SV.dtype)
    logits_SV.index_put_((there(words.at_W), there(words.last_W)), ban_W, accumulate=True)
