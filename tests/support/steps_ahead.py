"""Launches steps on an executor without waiting for those before, as an engine that knows no tokens."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.executor import Executor
from sheaf_runtime.worker.masks import TokenMasks
from sheaf_runtime.worker.plan import NewRequest, Scheduled, StepPlan


@dataclass(eq=False)
class Ahead:
    """A request: ``launched`` of its tokens have been, ``output`` is what has come back. ``asked`` tokens
    were sampled, some of them not here yet."""

    req_id: int
    prompt: list[int]
    sampling: SamplingParams
    pages: list[int] = field(default_factory=list)
    known: bool = False
    launched: int = 0
    asked: int = 0
    epoch: int = 0
    output: list[int] = field(default_factory=list)
    error: str | None = None

    @property
    def length(self) -> int:
        return len(self.prompt) + self.asked


class StepsAhead:
    """``most`` steps are in flight at a time. No page is handed out twice."""

    def __init__(self, executor: Executor, *, block_size: int, most: int) -> None:
        self.executor = executor
        self._block_size = block_size
        self._most = most
        self._next_page = 1
        self._next_id = 0
        self._steps = 0
        self._ended: list[int] = []
        self._in_flight: deque[list[Ahead]] = deque()

    def add(self, prompt: list[int], sampling: SamplingParams) -> Ahead:
        self._next_id += 1
        return Ahead(self._next_id, prompt, sampling)

    def end(self, request: Ahead) -> None:
        """The next plan says so; steps in flight may still name it."""
        if request.known:
            self._ended.append(request.req_id)
            request.known = False
        request.epoch += 1  # what still comes is not wanted

    def resume(self, request: Ahead) -> None:
        """As after a preemption: what has come back is the end of its prompt now, the rest is lost."""
        self.end(request)
        request.pages, request.launched, request.asked = [], 0, len(request.output)

    def step(self, *chunks: tuple[Ahead, int], masks: TokenMasks | None = None) -> None:
        new, scheduled = [], []
        for request, count in chunks:
            end = request.launched + count
            assert end <= request.length
            needed = -(-end // self._block_size) - len(request.pages)
            pages = list(range(self._next_page, self._next_page + needed))
            self._next_page += needed
            request.pages += pages
            if not request.known:
                request.known = True
                new.append(
                    NewRequest(
                        req_id=request.req_id,
                        epoch=request.epoch,
                        token_ids=request.prompt + request.output,
                        num_prompt_tokens=len(request.prompt),
                        num_computed_tokens=0,
                        sampling=request.sampling,
                        block_ids=[pages],
                    )
                )
                pages = []
            sample = end == request.length
            scheduled.append(
                Scheduled(
                    req_id=request.req_id,
                    epoch=request.epoch,
                    start=request.launched,
                    num_tokens=count,
                    new_block_ids=[pages],
                    sample=sample,
                )
            )
            request.launched, request.asked = end, request.asked + sample
        self.executor.launch(StepPlan(step=self._steps, ended=self._ended, new=new, scheduled=scheduled))
        self.executor.sample(masks)
        self._steps, self._ended = self._steps + 1, []
        self._in_flight.append([request for request, _ in chunks])
        if len(self._in_flight) > self._most:
            self._take()

    def collect(self) -> None:
        while self._in_flight:
            self._take()

    def _take(self) -> None:
        named = {request.req_id: request for request in self._in_flight.popleft()}
        for sampled in self.executor.collect().sampled:
            request = named[sampled.req_id]
            if sampled.epoch == request.epoch:
                request.output += sampled.token_ids
                request.error = sampled.error
