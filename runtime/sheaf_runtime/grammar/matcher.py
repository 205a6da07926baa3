"""Where one request is in its grammar. It follows committed tokens only, so preemption rolls back nothing; it
looks along drafts, and comes back."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sheaf_runtime.grammar.native import bindings

logger = logging.getLogger(__name__)
Int32 = npt.NDArray[np.int32]
# A mask takes microseconds; a grammar that needs longer than this for one would stop everybody's step.
MASK_SECONDS = 0.5


class Matcher:
    """``end_ids`` end the text, where the grammar lets it end. ``stop_ids`` are all that end the request."""

    def __init__(self, compiled: Any, *, end_ids: Iterable[int], stop_ids: Iterable[int]) -> None:
        self._ends = list(end_ids)
        self._stops = np.array(sorted(stop_ids), np.int64)
        self._matcher = bindings().GrammarMatcher(compiled, self._ends, False, -1, None)
        self._lost = False

    def accept(self, token_ids: Iterable[int]) -> None:
        """Tokens that were committed."""
        for token_id in token_ids:
            if not self._lost and not self._matcher.is_terminated():
                try:
                    self._lost = not self._matcher.accept_token(token_id, False)
                except Exception:  # this request's trouble: no token is allowed it any more
                    logger.exception("a grammar cannot take a token: its request ends")
                    self._lost = True

    def fill_along(self, masks_MW: Int32, drafts: Sequence[int], *, may_stop: bool) -> None:
        """A row for what may come next, and one for what may come after each of ``drafts``. Rows behind a
        draft that the grammar does not take allow everything: what comes there does not count."""
        self.fill(masks_MW, 0, may_stop=may_stop)
        if not drafts:
            return
        lost, taken = self._lost, 0
        for row, draft in enumerate(drafts, 1):
            if not self._matcher.is_terminated():  # else the request goes on, and end tokens change nothing
                if self._lost or not self._takes(draft):
                    masks_MW[row:] = -1
                    break
                taken += 1
            self.fill(masks_MW, row, may_stop=may_stop)
        if taken:
            self._matcher.rollback(taken)
        self._lost = lost  # what happens along drafts concerns nobody, unless they come

    def _takes(self, token_id: int) -> bool:
        try:
            return bool(self._matcher.accept_token(token_id, False))
        except Exception:
            logger.exception("a grammar cannot take a draft")
            return False

    def fill(self, masks_MW: Int32, index: int, *, may_stop: bool) -> None:
        """One row of packed bits: what may come next; nothing, if the request has to end in an error.

        While it may not stop, end tokens are left out unless they are all that the grammar leaves.
        """
        row_W = masks_MW[index]
        row_W[:] = 0
        if self._lost:
            return
        if self._matcher.is_terminated():  # and the request goes on, because it ignores end tokens
            _set(row_W, np.array(self._ends, np.int64))
            return
        began = time.perf_counter()
        try:
            self._matcher.fill_next_token_bitmask(masks_MW, index, False)
        except Exception:
            logger.exception("a grammar has no mask of the next token: its request ends")
            self._lost = True
            row_W[:] = 0
            return
        if (took := time.perf_counter() - began) > MASK_SECONDS:
            logger.warning("a grammar needed %.1f s for the mask of one token: its request ends", took)
            self._lost = True
            row_W[:] = 0
        elif not may_stop and self._stops.size:
            kept = row_W.copy()
            _clear(row_W, self._stops)
            if not row_W.any():
                row_W[:] = kept


def _set(row_W: Int32, ids: npt.NDArray[np.int64]) -> None:
    np.bitwise_or.at(row_W.view(np.uint32), ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))


def _clear(row_W: Int32, ids: npt.NDArray[np.int64]) -> None:
    np.bitwise_and.at(row_W.view(np.uint32), ids // 32, ~(np.uint32(1) << (ids % 32).astype(np.uint32)))
