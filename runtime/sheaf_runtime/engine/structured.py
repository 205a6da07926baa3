"""Requests whose output has a grammar: those that wait for it, and the masks of those that run."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from sheaf_runtime.engine.outputs import Output
from sheaf_runtime.engine.request import Request
from sheaf_runtime.grammar.compiler import Compiler
from sheaf_runtime.grammar.matcher import Matcher
from sheaf_runtime.protocol.grammar import Grammar
from sheaf_runtime.protocol.messages import Rejected
from sheaf_runtime.worker.masks import TokenMasks, packed_width
from sheaf_runtime.worker.plan import Scheduled, StepPlan

# A request that found no place to be compiled in for this long is told to come again.
PATIENCE = 60.0


@dataclass(frozen=True)
class _Waiting:
    request: Request
    compiled: Future[Any]
    since: float


class Structured:
    """Nobody else waits for a grammar: a request joins the others once its own is there."""

    def __init__(self, compiler: Compiler, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self.compiler = compiler
        self._width = packed_width(vocab_size)
        self._eos = eos_token_ids
        self._waiting: dict[tuple[bytes, str], _Waiting] = {}  # in order of arrival
        self._matchers: dict[int, Matcher] = {}

    # --- requests that wait ---------------------------------------------------------------------------

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def queued_tokens(self) -> int:
        """Of their prompts."""
        return sum(w.request.num_prompt_tokens for w in self._waiting.values())

    def holds(self, client: bytes, request_id: str) -> bool:
        return (client, request_id) in self._waiting

    def wait_for(self, request: Request, grammar: Grammar, now: float) -> None:
        key = (request.client, request.request_id)
        self._waiting[key] = _Waiting(request, self.compiler.compile(grammar), now)

    def forget(self, client: bytes, request_id: str) -> None:
        self._waiting.pop((client, request_id), None)

    def take_ready(self, now: float) -> list[tuple[Request, Rejected | None]]:
        """Those that wait no longer, in order of arrival, and why some are refused."""
        over = [key for key, w in self._waiting.items() if w.compiled.done() or now - w.since > PATIENCE]
        return [self._judged(self._waiting.pop(key)) for key in over]

    def _judged(self, waiting: _Waiting) -> tuple[Request, Rejected | None]:
        request, grammar = waiting.request, waiting.request.sampling.grammar
        assert grammar is not None

        def rejected(reason: Any, problem: str) -> tuple[Request, Rejected]:
            message = f"{grammar.param}: {problem}"
            return request, Rejected(
                request_id=request.request_id, reason=reason, message=message, param=grammar.param
            )

        if not waiting.compiled.done():
            return rejected("queue_full", "too many grammars wait to be compiled. Try again later.")
        if (error := waiting.compiled.exception()) is not None:
            return rejected("invalid", str(error) or type(error).__name__)
        try:
            self._matchers[request.req_id] = self._matcher(request, waiting.compiled.result())
        except Exception as error:  # this request's trouble
            return rejected("internal", f"the grammar cannot be used: {type(error).__name__}: {error}")
        return request, None

    def _matcher(self, request: Request, compiled: Any) -> Matcher:
        """Special tokens that end the request may come where the text may end, as the model's own ends do."""
        special = self.compiler.vocabulary.special
        ends = dict.fromkeys([*self._eos, *filter(special, request.sampling.stop_token_ids)])
        return Matcher(compiled, end_ids=ends, stop_ids=request.stop_ids)

    # --- requests that run ----------------------------------------------------------------------------

    def masked(self, plan: StepPlan) -> list[Scheduled]:
        """Requests of the plan that get a token and have a grammar."""
        if not self._matchers:
            return []
        return [s for s in plan.scheduled if s.sample and s.req_id in self._matchers]

    def masks(self, masked: Iterable[Scheduled], requests: dict[int, Request]) -> TokenMasks | None:
        """For those that have not ended since the step was planned. All their tokens have been committed."""
        live = [item for item in masked if item.req_id in self._matchers and item.req_id in requests]
        if not live:
            return None
        ids = [item.req_id for item in live for _ in range(1 + len(item.draft_token_ids))]
        bits = np.empty((len(ids), self._width), np.int32)
        first = 0
        for item in live:
            request, drafts = requests[item.req_id], item.draft_token_ids
            # Of a step that has drafts all samples may be ends, or none (``Request.drafts_within``).
            may_stop = request.num_output_tokens >= request.sampling.min_tokens
            rows = bits[first : first + 1 + len(drafts)]
            self._matchers[item.req_id].fill_along(rows, drafts, may_stop=may_stop)
            first += len(rows)
        return TokenMasks(ids, bits)

    def take(self, outputs: Iterable[Output]) -> None:
        """Committed tokens."""
        for output in outputs:
            matcher = self._matchers.get(output.request.req_id)
            if matcher is None:
                continue
            if output.finish_reason is not None:
                del self._matchers[output.request.req_id]
            else:
                matcher.accept(output.token_ids)

    def end(self, request: Request) -> None:
        self._matchers.pop(request.req_id, None)
