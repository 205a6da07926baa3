"""Drafts of a step: where the device finds them, and which of them came."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from sheaf_runtime.worker.plan import SampledTokens, Scheduled, StepPlan


def draft_cells(
    order: Sequence[Scheduled], rows: npt.NDArray[np.int64], width: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]] | None:
    """Cells of the mirror, whose rows are ``width`` long, and the drafts that belong there; None: there are
    none. ``rows`` are those of the requests."""
    cells: list[int] = []
    tokens: list[int] = []
    for item, row in zip(order, rows.tolist(), strict=True):
        if drafts := item.draft_token_ids:
            end = row * width + item.start + item.num_tokens
            cells += range(end - len(drafts), end)
            tokens += drafts
    return (np.array(cells, np.int64), np.array(tokens, np.int32)) if cells else None


def joined(sampled: list[SampledTokens], plan: StepPlan) -> list[SampledTokens]:
    """What each request gets. ``sampled`` has one token of each row; the rows of a request are its drafts' in
    order, and the last is the one behind them."""
    drafts = {item.req_id: item.draft_token_ids for item in plan.scheduled if item.draft_token_ids}
    if not drafts:
        return sampled
    made = []
    for req_id, rows in groupby(sampled, attrgetter("req_id")):
        made.append(_that_came(list(rows), drafts.get(req_id, [])))
    return made


def _that_came(rows: list[SampledTokens], drafts: list[int]) -> SampledTokens:
    """Up to the first token that is not the draft. Behind a draft that came there may be an error: it is met
    again by the next step, whose first row that is."""
    first = rows[0]
    if first.error is not None:
        return first
    count = 1
    while count < len(rows) and rows[count - 1].token_ids == [drafts[count - 1]] and not rows[count].error:
        count += 1
    return SampledTokens(
        req_id=first.req_id,
        epoch=first.epoch,
        token_ids=[token for row in rows[:count] for token in row.token_ids],
        logprobs=[one for row in rows[:count] for one in row.logprobs],
    )
