"""Which tokens of which requests run in the next step. Data in, a ``StepPlan`` out: no clock, no device.

There are no phases: each running request chases its number of tokens under one token budget per step,
decodes (one token to go) before prefill chunks, then waiting requests are admitted by rank (``order``).
Who is served first decides everything: when pages run out, the request of
the highest rank number gives its pages back and starts over later (its published pages may still be hits
by then). The best-ranked request is never preempted and can always take what it needs, so some
request always proceeds and each one ends.

Pages named by a launched step stay untouched until that step is committed, whatever happened to their
request: they are released *late*.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, deque
from collections.abc import Mapping, Sequence

from sheaf_runtime.config import SpeculativeConfig
from sheaf_runtime.engine.adapter_room import AdapterRoom
from sheaf_runtime.engine.cost_model import CostModel, StepWork
from sheaf_runtime.engine.entrance import entries
from sheaf_runtime.engine.kv_cache import BlockTables, KVCache
from sheaf_runtime.engine.order import Rank, rank, too_late
from sheaf_runtime.engine.outputs import TIMED_OUT, Counters, Output
from sheaf_runtime.engine.pages_ahead import find_hit
from sheaf_runtime.engine.preemption import victims
from sheaf_runtime.engine.prompt_share import PendingPrompt, PromptRoom
from sheaf_runtime.engine.request import Request, Status
from sheaf_runtime.engine.speculation import Speculation
from sheaf_runtime.engine.step import Launched, LaunchedStep, Step, StepLimits
from sheaf_runtime.protocol.messages import FinishReason
from sheaf_runtime.worker.plan import (
    BlockIds,
    KVGroup,
    NewRequest,
    PooledVector,
    SampledTokens,
    Scheduled,
    StepPlan,
    StepResult,
)


class Scheduler:
    """``max_num_batched_tokens`` is the token budget of a step, ``pipeline_depth`` how many launched steps
    may be uncommitted when the next one is planned. ``target_inter_token``: seconds that a step with decodes
    may last; None: as ``prompt_share`` says. ``order_by_slack``: of the first token (``order``).

    More than ``long_prefill_token_threshold`` tokens to go (0: half of the budget) make a prompt long. It
    leaves up to half of a step to shorter ones that wait, so that those start beside it; at most
    ``max_num_partial_prefills`` long ones share the rest."""

    def __init__(
        self,
        groups: Sequence[KVGroup],
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        long_prefill_token_threshold: int = 0,
        max_num_partial_prefills: int = 1,
        target_inter_token: float | None = None,
        order_by_slack: bool = False,
        prefix_caching: bool = True,
        pipeline_depth: int = 0,
        copy_pages: bool = False,
        max_loras: int = 1,
        speculation: SpeculativeConfig | None = None,
    ) -> None:
        self.kv = KVCache(
            groups,
            num_blocks=num_blocks,
            block_size=block_size,
            prefix_caching=prefix_caching,
            max_in_flight_tokens=(pipeline_depth + 1) * max_num_batched_tokens,
            copy_pages=copy_pages,
        )
        self.max_num_batched_tokens = max_num_batched_tokens
        self._limits = StepLimits(
            max_num_seqs=max_num_seqs,
            long=long_prefill_token_threshold or max(1, max_num_batched_tokens // 2),
            max_num_partial=max_num_partial_prefills,
        )
        self._target_inter_token = target_inter_token
        self._order_by_slack = order_by_slack
        self.adapters = AdapterRoom(max_loras)
        self._timed: dict[Request, None] = {}  # that have a deadline, in order of arrival
        self.costs = CostModel()
        self.speculation = None if speculation is None else Speculation(speculation, self.costs)
        self.waiting: list[Request] = []  # both sorted by rank
        self.running: list[Request] = []
        self.counters = Counters()
        self._launched: deque[LaunchedStep] = deque()
        self._late: list[tuple[int, BlockTables]] = []  # (step that must be committed first, pages)
        self._ended: list[int] = []  # ids that the worker does not know to have ended yet
        self._next_step = 0
        self._no_new_blocks: BlockIds = [[] for _ in groups]  # shared by all plans, never written
        self._no_drafts: list[int] = []  # the same

    # --- requests come and go -------------------------------------------------------------------------

    def add(self, request: Request) -> None:
        """The caller has checked that it fits the empty pool (``kv.max_tokens``)."""
        if self._order_by_slack:
            seconds = self._prompt_seconds(request)
            request.rank = rank(request.arrival_time, request.priority, request.req_id, seconds)
        if request.deadline is not None:
            self._timed[request] = None
        insort(self.waiting, request, key=_rank)

    def abort(self, request: Request) -> None:
        """No further output. Pages of a launched step are released when that step is committed."""
        if request.status is Status.WAITING:
            _remove(self.waiting, request)
            request.status = Status.ENDED
            self._timed.pop(request, None)
        elif request.status is Status.RUNNING:
            self._end(request)

    def expire(self, now: float) -> list[Output]:
        """End the requests whose time is up, and those that wait in vain: what their prompt takes alone
        reaches beyond it."""
        late = [r for r in self._timed if r.deadline is not None and self._too_late(r, r.deadline, now)]
        for request in late:
            self.abort(request)
        return [Output(r, [], "timeout", None, False, [], TIMED_OUT) for r in late]

    def end_without_adapter(self, failed: Mapping[int, str]) -> list[Output]:
        """End the requests that wait for an adapter which could not be read, by its id and why."""
        ended = [
            (r, failed[r.adapter]) for r in self.waiting if r.adapter is not None and r.adapter in failed
        ]
        for request, _ in ended:
            self.abort(request)
        return [Output(r, [], "error", None, False, [], f"its adapter: {why}") for r, why in ended]

    def _too_late(self, request: Request, deadline: float, now: float) -> bool:
        if request.status is not Status.WAITING or request.num_output_tokens:
            return too_late(deadline, now, 0.0)
        alone = self.costs.prompt_seconds(0, request.num_prompt_tokens)
        return too_late(deadline, now, alone) and too_late(deadline, now, self._prompt_seconds(request))

    def _prompt_seconds(self, request: Request) -> float:
        """That its prompt is foreseen to take, without what is cached."""
        start = self.kv.hit_tokens(find_hit(self.kv, request))
        return self.costs.prompt_seconds(start, request.num_prompt_tokens - start)

    @property
    def max_num_seqs(self) -> int:
        """Requests that may run at once."""
        return self._limits.max_num_seqs

    @property
    def num_in_flight(self) -> int:
        """Launched and not committed steps."""
        return len(self._launched)

    @property
    def busy(self) -> bool:
        """Whether there is something to plan or to commit."""
        return bool(
            self.running or self._launched or any(not self.adapters.reads_for(r) for r in self.waiting)
        )

    # --- planning -------------------------------------------------------------------------------------

    def needs_results(self) -> bool:
        """Whether launched steps are to be committed before the next one is planned."""
        if self.speculation is None or not self._launched:
            return False
        if any(item.drafts for launched in self._launched for item in launched.items):
            return True  # those of its requests wait, and the others would go on without them
        return self.speculation.wait([r for r in self.running if r.num_output_tokens])

    def schedule(self, now: float) -> StepPlan | None:
        """Plan the next step and count its tokens as in flight; None if there is nothing to launch now.

        Then either a launched step must be committed first, or all that wait do so for an adapter.
        """
        self.adapters.plan(self.running, now)
        self._make_way()
        plan = Step(PromptRoom(self.costs, self.max_num_batched_tokens))
        self._schedule_decodes(plan, now)
        self._schedule_prompts(plan)
        admitted = [] if plan.short_of_pages else self._admit(plan, now)
        if not plan.chosen:
            assert self._launched or not self.busy, "nothing runs and nothing can"
            return None
        new = [
            NewRequest(
                req_id=request.req_id,
                epoch=request.epoch,
                token_ids=request.token_ids.copy(),
                num_prompt_tokens=request.num_prompt_tokens,
                num_computed_tokens=request.computed,
                sampling=request.worker_sampling,
                block_ids=[table.copy() for table in request.tables.tables],
                pooling=request.pooling,
                adapter=request.adapter,
                copied_pages=self.kv.copies(request.tables),
            )
            for request in admitted
        ]
        step = self._next_step
        self._next_step += 1
        scheduled = []
        launched = []
        work = StepWork()
        for request, (num_tokens, new_block_ids) in plan.chosen.items():
            start = _start(request)
            drafts = plan.drafts.get(request, self._no_drafts)
            sample = start + num_tokens - len(drafts) == len(request.token_ids) + request.in_flight_samples
            scheduled.append(
                Scheduled(
                    req_id=request.req_id,
                    epoch=request.epoch,
                    start=start,
                    num_tokens=num_tokens,
                    new_block_ids=new_block_ids,
                    sample=sample,
                    draft_token_ids=drafts,
                )
            )
            launched.append(Launched(request, request.epoch, num_tokens, sample, drafts))
            work.add(start, num_tokens - len(drafts))
            work.drafts += len(drafts)
            request.in_flight += num_tokens
            request.in_flight_samples += sample
            request.last_step = step
        ended, self._ended = self._ended, []
        since = None if self._launched else now
        self._launched.append(LaunchedStep(step, work, launched, since))
        return StepPlan(step=step, ended=ended, new=new, scheduled=scheduled)

    def _schedule_decodes(self, step: Step, now: float) -> None:
        """Running requests that have one token to go; what they leave is the room for prompts."""
        for request in self.running.copy():
            if request.status is Status.RUNNING and request.num_to_compute == 1:
                self._choose(step, request)
        decodes = StepWork()
        for request in step.chosen:
            decodes.add(_start(request), 1)
        could = self.waiting[: self.max_num_seqs - len(self.running)]
        prompts = [r for r in self.running if r.num_to_compute > 1] + could
        step.room.leave_for(
            decodes,
            prompts=(_pending(r, now) for r in prompts),
            target=self._target_inter_token,
        )
        if self.speculation is not None and step.chosen:
            self._add_drafts(step, self.speculation)

    def _add_drafts(self, step: Step, speculation: Speculation) -> None:
        """To requests of the step, as far as there is room that nobody else is short of."""
        decodes = list(step.chosen)
        # Prompts keep half of the tokens, and each running request finds pages for its next tokens.
        for request, drafts in zip(decodes, speculation.choose(decodes, step.room.tokens // 2), strict=True):
            if not drafts:
                continue
            num_tokens, new_block_ids = step.chosen[request]
            end = _start(request) + num_tokens
            slots = len(request.tables.tables[-1]) * self.kv.block_size - end
            if len(drafts) > slots and not self.kv.has_spare(len(self.running), len(drafts)):
                drafts = drafts[:slots]
            more = self._grow(request, num_tokens + len(drafts))
            assert more is not None
            if more is not self._no_new_blocks:
                new_block_ids = [a + b for a, b in zip(new_block_ids, more, strict=True)]
            step.chosen[request] = (num_tokens + len(drafts), new_block_ids)
            step.drafts[request] = drafts
            step.room.tokens -= len(drafts)

    def _schedule_prompts(self, step: Step) -> None:
        """Chunks of the running requests' prompts."""
        prefills = [r for r in self.running if r.num_to_compute > 1]
        step.reserve = self._reserve(step.room, prefills)
        num_long = min(
            self._limits.max_num_partial, sum(r.num_to_compute > self._limits.long for r in prefills)
        )
        for request in prefills:
            if request.status is not Status.RUNNING:  # preempted by one before it
                continue
            if request.num_to_compute > self._limits.long:
                self._choose(step, request, sharing=max(1, num_long))
                num_long -= 1
            else:
                step.reserve = max(0, step.reserve - self._choose(step, request))

    def _reserve(self, room: PromptRoom, prefills: list[Request]) -> int:
        most, seats = room.holds(0, room.tokens) // 2, self.max_num_seqs - len(self.running)
        wanted = sum(r.num_to_compute for r in prefills if r.num_to_compute <= self._limits.long)
        for request in self.waiting:
            if wanted >= most or seats <= 0:
                break
            waits = request.must_wait or self.adapters.keeps_out(request)
            if request.num_to_compute <= self._limits.long and not waits:
                wanted += request.num_to_compute
                seats -= 1
        return min(wanted, most)

    def _choose(self, step: Step, request: Request, sharing: int = 0) -> int:
        """Put as many more tokens of a running request into the step as there is room for, and return their
        number: 0 if there are no pages for them."""
        start = _start(request)
        while num_tokens := step.part(start, request.num_to_compute, sharing):
            new_block_ids = self._grow(request, num_tokens)
            if new_block_ids is not None:
                step.chosen[request] = (num_tokens, new_block_ids)
                step.room.take(start, num_tokens)
                return num_tokens
            step.short_of_pages = True
            # Pages are on their way, or this request is the one that has to wait for the others.
            if self._late or self.running[-1] is request:
                return 0
            victim = self.running[-1]
            if victim in step.chosen:
                step.room.give_back(_start(victim), step.chosen.pop(victim)[0])
                step.drafts.pop(victim, None)
            self._preempt(victim)
        return 0

    def _grow(self, request: Request, num_tokens: int) -> BlockIds | None:
        held = request.tables
        end = request.computed + request.in_flight + num_tokens
        if len(held.tables[-1]) * self.kv.block_size >= end:
            return self._no_new_blocks
        return self.kv.grow(held, end)

    def _admit(self, step: Step, now: float) -> list[Request]:
        """Take requests off the waiting list while they fit."""
        admitted: list[Request] = []
        for entry in entries(self.waiting, self.running, step, self.kv, self._limits, self.adapters):
            request, hit, num_tokens = entry.request, entry.hit, entry.num_tokens
            _remove(self.waiting, request)
            insort(self.running, request, key=_rank)
            self._start(request, hit, now)
            start = request.computed
            if entry.short:
                step.reserve = max(0, step.reserve - request.num_to_compute)
            grown = self.kv.grow(hit, start + num_tokens)
            assert grown is not None
            step.room.take(start, num_tokens)
            step.chosen[request] = (num_tokens, self._no_new_blocks)  # they go with the NewRequest
            admitted.append(request)
        return admitted

    def _make_way(self) -> None:
        """Preempt for the first that waits with a better priority than some that run, if that lets it in."""
        late = sum(held.num_held for _, held in self._late)
        for victim in victims(self.waiting, self.running, self.kv, late, self._limits, self.adapters):
            self._preempt(victim)

    def _start(self, request: Request, hit: BlockTables, now: float) -> None:
        """It runs from now on, from the end of the prefix that was found."""
        self.kv.take(hit)
        request.status = Status.RUNNING
        request.held = hit
        request.computed = self.kv.hit_tokens(hit)
        if request.scheduled_time is None:
            request.scheduled_time = now
            request.cached_tokens = request.computed
            if self.kv.prefix_caching:
                self.counters.prefix_cache_queries += request.num_prompt_tokens
                self.counters.prefix_cache_hits += request.computed

    def _preempt(self, victim: Request) -> None:
        self._stop_running(victim)
        victim.status = Status.WAITING
        self.counters.preemptions += 1
        insort(self.waiting, victim, key=_rank)

    # --- results --------------------------------------------------------------------------------------

    def commit(self, result: StepResult, now: float) -> list[Output]:
        """Take in the oldest launched step: publish its pages, append its tokens, end what is over."""
        launched = self._launched.popleft()
        step, work = launched.step, launched.work
        assert result.step == step, f"got the result of step {result.step}, expected {step}"
        if result.seconds is not None:
            self.costs.observe(work, result.seconds)
        if self.speculation is not None:
            handover = None
            if launched.since is not None and not self._launched and result.seconds is not None:
                handover = now - launched.since - result.seconds
            self.speculation.observe(work.drafts, handover)
        sampled = {(s.req_id, s.epoch): s for s in result.sampled}
        scored = {(s.req_id, s.epoch): s.logprobs for s in result.scored}
        pooled = {(p.req_id, p.epoch): p for p in result.pooled}
        outputs = []
        for item in launched.items:
            request = item.request
            if request.epoch != item.epoch:
                continue
            request.in_flight -= item.num_tokens
            request.computed += item.num_tokens - len(item.drafts)
            request.scored += scored.get((request.req_id, request.epoch), ())
            self.counters.prompt_tokens += request.count_prompt()
            output = None
            if item.sample:
                request.in_flight_samples -= 1
                key = request.req_id, request.epoch
                if request.pooling is None:
                    output = self._append(request, sampled[key], now)
                    if item.drafts:
                        self._count_drafts(request, item.drafts, output)
                else:
                    output = self._answer(request, pooled[key], now)
                outputs.append(output)
            held = request.tables
            failed = output is not None and output.error is not None
            if not failed:  # else it is no good to others
                self.kv.publish(
                    held,
                    request.token_ids,
                    request.root,
                    request.computed,
                    request.extras,
                    (request.adapter, request.adapter_name),
                )
            if output is not None and output.finish_reason is not None:
                self._end(request, failed=failed)
            else:
                self.kv.trim(held, request.computed)
                if self.speculation is not None:
                    self.speculation.follow(request, 0 if output is None else len(output.token_ids))
        self.counters.steps += 1
        self._release_late(step)
        return outputs

    def _append(self, request: Request, sampled: SampledTokens, now: float) -> Output:
        first = request.num_output_tokens == 0
        if first:
            request.first_token_time = now
        if sampled.error is not None:
            return Output(request, [], "error", None, first, [], sampled.error)
        taken, finish_reason, stop_token_id = request.append(sampled.token_ids)
        self.counters.generation_tokens += len(taken)
        return Output(request, taken, finish_reason, stop_token_id, first, sampled.logprobs[: len(taken)])

    def _count_drafts(self, request: Request, drafts: list[int], output: Output) -> None:
        """All tokens but the last are drafts that came: only these are computed."""
        came = max(0, len(output.token_ids) - 1)
        request.computed += came
        counters = self.counters
        counters.drafted += 1
        counters.draft_tokens += len(drafts)
        counters.accepted_at += [0] * (len(drafts) - len(counters.accepted_at))
        for place in range(came):
            counters.accepted_at[place] += 1

    def _answer(self, request: Request, pooled: PooledVector, now: float) -> Output:
        request.first_token_time = now
        reason: FinishReason = "stop" if pooled.error is None else "error"
        return Output(request, [], reason, None, True, [], pooled.error, pooled.vector)

    # --- ends -----------------------------------------------------------------------------------------

    def _end(self, request: Request, *, failed: bool = False) -> None:
        self._stop_running(request, failed=failed)
        request.status = Status.ENDED
        self._timed.pop(request, None)

    def _stop_running(self, request: Request, *, failed: bool = False) -> None:
        _remove(self.running, request)
        self._ended.append(request.req_id)
        held = request.tables
        if not failed:
            self.kv.publish_rest(held, request.token_ids, request.root, request.computed)
        if self._launched and request.last_step >= self._launched[0].step:
            self._late.append((request.last_step, held))
        else:
            self.kv.release(held)
        request.reset()

    def _release_late(self, completed_step: int) -> None:
        if self._late:
            for step, held in self._late:
                if step <= completed_step:
                    self.kv.release(held)
            self._late = [(step, held) for step, held in self._late if step > completed_step]

    # --- gauges and invariants ------------------------------------------------------------------------

    def count_blocks(self) -> tuple[int, int, int]:
        """(live, cached, free), together all pages. Pages that only wait to be released late belong to no
        request any more and are counted as what they will be."""
        pool = self.kv.pool
        late = Counter(page for _, held in self._late for table in held.tables for page in table if page)
        released = [page for page, count in late.items() if pool.ref_count(page) == count]
        cached = sum(map(pool.is_published, released))
        live = pool.num_live - len(released)
        return live, pool.num_cached + cached, pool.num_free + len(released) - cached

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens of waiting requests that are not computed yet."""
        return sum(r.num_prompt_tokens for r in self.waiting)

    @property
    def oldest_arrival(self) -> float | None:
        return min((r.arrival_time for r in self.waiting), default=None)

    def check_integrity(self) -> None:
        """Every page reference belongs to a running request or to pages released late. O(pages)."""
        pool = self.kv.pool
        pool.check_integrity()
        references = [0] * (pool.num_total + 1)
        for held in [r.tables for r in self.running] + [held for _, held in self._late]:
            for table, first in zip(held.tables, held.first_live, strict=True):
                assert not any(table[:first]), "a page outside the window is still held"
                for page in table[first:]:
                    references[page] += 1
        for page, count in enumerate(references):
            assert pool.ref_count(page) == count, (
                f"page {page}: {pool.ref_count(page)} references, not {count}"
            )
        assert all(r.status is Status.RUNNING for r in self.running)
        assert all(r.status is Status.WAITING and r.held is None for r in self.waiting)
        assert self.busy or not self._late, "pages are released late for a step that was never launched"


def _rank(request: Request) -> Rank:
    return request.rank


def _remove(requests: list[Request], request: Request) -> None:
    index = bisect_left(requests, request.rank, key=_rank)
    assert requests[index] is request
    del requests[index]


def _pending(request: Request, now: float) -> PendingPrompt:
    """One that has tokens already and starts over has no first token to wait for."""
    waited = 0.0 if request.num_output_tokens else now - request.arrival_time
    return PendingPrompt(_start(request), request.num_to_compute, request.num_prompt_tokens, waited)


def _start(request: Request) -> int:
    """The first position that is not launched yet."""
    return request.computed + request.in_flight
