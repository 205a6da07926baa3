"""Which requests get drafts, and how many: speculation that switches itself. Pure: no clock, no device.

A *draft* is a token that a request may get; the step that makes its next token computes its drafts too, and
samples after each. As long as what was sampled is the draft, the next sample counts, so tokens are those that
would have come without.

What is proposed costs nothing to look up, so every proposal is compared with what comes, also where no
draft was computed: each request's acceptance is known all the time, and none has to be tried. A draft is
worth its probability in tokens and, by the cost model, its seconds. It goes into the step if it raises tokens
per second, the likeliest first. Drafts also need the last tokens, so steps are then planned after results;
what that costs is measured, and compared before.

What drafts cost can only be seen where some were computed. It is believed less and less while none are, so
that one is tried from time to time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heapreplace

from sheaf_runtime.config import SpeculativeConfig
from sheaf_runtime.engine.cost_model import CostModel, StepWork
from sheaf_runtime.engine.drafting import Drafting, Proposer, may_draft
from sheaf_runtime.engine.ngram import NgramProposer
from sheaf_runtime.engine.request import Request

LEAST = 0.05  # probability of a draft that is looked at
GAIN = 1.02  # times the tokens per second for which steps wait for results
BELIEVED = 256  # steps without drafts after which their cost counts 1/2
HANDOVER = 0.1  # weight of the last step in what waiting for results costs


class Speculation:
    """``follow`` a request after each commit. ``wait`` says whether the next step is to be planned after the
    results of those under way, ``choose`` which drafts it has."""

    def __init__(self, config: SpeculativeConfig, costs: CostModel) -> None:
        self._most = config.num_speculative_tokens
        shortest, longest = config.lookup
        self.make_proposer: Callable[[], Proposer] = lambda: NgramProposer(shortest, longest)
        self._costs = costs
        self._handover = 0.0  # seconds a step that waiting for results takes
        self._without = 0  # steps since some had drafts

    def follow(self, request: Request, num_new: int) -> None:
        """Tokens of it were committed, the last ``num_new`` of which are output."""
        state = request.drafting
        if state is None:
            if request.pooling is not None or not may_draft(request.sampling):
                return
            state = request.drafting = Drafting(self.make_proposer())
        if num_new:
            state.compare(request.token_ids[-num_new:])
        state.proposed = []
        if state.proposer.follow(request.token_ids) and num_new:
            state.proposed = state.proposer.propose(request.token_ids, self._most)

    def observe(self, num_drafts: int, handover: float | None) -> None:
        """A step was committed; ``handover``: seconds beside the device's, of one that nothing else was in
        flight with."""
        self._without = 0 if num_drafts else self._without + 1
        if handover is not None:
            self._handover += HANDOVER * (max(0.0, handover) - self._handover)

    def wait(self, decodes: Sequence[Request]) -> bool:
        """Whether tokens per second are more if the tokens of these requests are known first."""
        states = [r.drafting for r in decodes]
        if all(state is None or state.right * state.there < LEAST for state in states):
            return False
        rates = [0.0 if state is None else state.right * state.there for state in states]
        alone = self._costs.predict(_work(decodes))
        depths, tokens, seconds = choose_depths(
            zip(rates, (r.drafts_within(self._most) for r in decodes), strict=True),
            tokens=len(decodes),
            seconds=alone,
            draft_seconds=self._draft_seconds,
        )
        if not self._costs.known:
            return any(depths)
        return tokens * alone > GAIN * len(decodes) * (seconds + self._believed * self._handover)

    def choose(self, decodes: Sequence[Request], room: int) -> list[list[int]]:
        """The drafts of each of these requests, whose tokens are known; ``room`` tokens in all."""
        wishes = []
        for request in decodes:
            state = request.drafting
            if state is None or not state.proposed or request.in_flight:
                wishes.append((0.0, 0))
            else:
                wishes.append((state.right, request.drafts_within(self._most)))
        depths, _, _ = choose_depths(
            wishes,
            tokens=len(decodes),
            seconds=self._costs.predict(_work(decodes)) + self._handover,
            draft_seconds=self._draft_seconds,
            room=room,
        )
        return [
            request.drafting.proposed[:depth] if request.drafting is not None and depth else []
            for request, depth in zip(decodes, depths, strict=True)
        ]

    @property
    def _believed(self) -> float:
        return float(0.5 ** (self._without / BELIEVED))

    @property
    def _draft_seconds(self) -> float:
        return self._costs.draft_seconds * self._believed


def choose_depths(
    wishes: Iterable[tuple[float, int]],
    *,
    tokens: float,
    seconds: float,
    draft_seconds: float,
    room: int | None = None,
) -> tuple[list[int], float, float]:
    """How many drafts each gets in a step that makes ``tokens`` in ``seconds`` without: as long as one more
    makes more tokens per second, ``room`` at most. ``wishes``: how likely each of a request's drafts is if
    those before it came, and the most it takes. Also the step's expected tokens, and its seconds then."""
    listed = list(wishes)
    depths = [0] * len(listed)
    heap = [(-rate, i) for i, (rate, most) in enumerate(listed) if rate >= LEAST and most > 0]
    heapify(heap)
    left = sum(most for _, most in listed) if room is None else room
    while heap and left > 0:
        gain, i = -heap[0][0], heap[0][1]
        if gain * seconds < draft_seconds * tokens:
            break
        tokens, seconds, left = tokens + gain, seconds + draft_seconds, left - 1
        depths[i] += 1
        rate, most = listed[i]
        if depths[i] < most:
            heapreplace(heap, (-gain * rate, i))
        else:
            heappop(heap)
    return depths, tokens, seconds


def _work(decodes: Iterable[Request]) -> StepWork:
    work = StepWork()
    for request in decodes:
        work.add(request.computed + request.in_flight, 1)
    return work
