"""The engine: requests in, committed tokens out; a step is schedule, launch, sample, collect, commit."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable

from sheaf_runtime.config import EngineConfig, check_config, seconds
from sheaf_runtime.engine.adapters import Adapters
from sheaf_runtime.engine.admission import Limits, refuse
from sheaf_runtime.engine.kv_events import KVEventLog
from sheaf_runtime.engine.outputs import Output
from sheaf_runtime.engine.queue_limits import DrainRate, QueueLimits, retry_after
from sheaf_runtime.engine.request import Request, derive_seed
from sheaf_runtime.engine.scheduler import Scheduler
from sheaf_runtime.engine.structured import Structured
from sheaf_runtime.grammar.compiler import Compiler
from sheaf_runtime.protocol.messages import (
    Accepted,
    AdapterAnswer,
    AddRequest,
    EngineReady,
    EngineStats,
    Rejected,
)
from sheaf_runtime.worker.executor import Executor

logger = logging.getLogger(__name__)


class EngineCore:
    """Owns the requests; used by the core process and, in process, by ``LLM``.

    Raises ``ValueError`` for a configuration with which no request could ever run.
    """

    def __init__(
        self, executor: Executor, config: EngineConfig, *, clock: Callable[[], float] = time.time
    ) -> None:
        check_config(config)
        info = executor.info
        self._executor = executor
        self._clock = clock
        self._depth = config.pipeline_depth
        # Replicas, and this one after a restart, must not draw the same numbers unless they are told to.
        self._seed = int.from_bytes(os.urandom(8)) if config.seed is None else config.seed
        self._queue_limits = QueueLimits(config.max_waiting_requests, config.max_waiting_tokens)
        self._drain_rate = DrainRate()
        self.scheduler = Scheduler(
            info.kv_groups,
            num_blocks=info.num_blocks,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            long_prefill_token_threshold=config.long_prefill_token_threshold,
            max_num_partial_prefills=config.max_num_partial_prefills,
            target_inter_token=seconds(config.target_inter_token_ms),
            order_by_slack=config.target_ttft_ms is not None,
            prefix_caching=config.enable_prefix_caching,
            pipeline_depth=config.pipeline_depth,
            # Elsewhere a copy costs more launches than a page of tokens.
            copy_pages=info.device == "cpu",
            max_loras=config.max_loras,
            speculation=config.speculative_config,
        )
        self.adapters = Adapters(executor, self.scheduler.adapters, config.most_cpu_loras)
        self.adapters.load_at_start(config.lora_modules)
        pool_tokens = self.scheduler.kv.max_tokens()
        self._limits = Limits(
            info.vocab_size, info.max_model_len, pool_tokens, info.generates, info.pooled_size
        )
        self._requests: dict[tuple[bytes, str], Request] = {}
        compiler = Compiler(config.model, info.vocab_size, info.eos_token_ids)
        self.structured = Structured(compiler, info.vocab_size, info.eos_token_ids)
        self._num_added = 0
        self._num_seeds = 0
        self._iteration_tokens: list[int] = []
        self.ready = EngineReady(
            # Clients derive default output lengths from this, so it must be one that can be served. The last
            # token that is generated takes no slot.
            max_model_len=min(info.max_model_len, pool_tokens + info.generates),
            block_size=config.block_size,
            num_blocks=self.scheduler.kv.pool.num_total,
            max_num_seqs=config.max_num_seqs,
            vocab_size=info.vocab_size,
            weights_bytes=info.weights_bytes,
            device=info.device,
            dtype=info.dtype,
            pooled_size=info.pooled_size,
        )

    # --- intake ---------------------------------------------------------------------------------------

    def add(self, client: bytes, message: AddRequest) -> Accepted | Rejected | None:
        """None: the answer comes from ``take_ready`` once the request's grammar has been compiled."""
        request_id = message.request_id
        if (client, request_id) in self._requests or self.structured.holds(client, request_id):
            return Rejected(
                request_id=request_id,
                reason="invalid",
                message=f"request_id {request_id!r} is already in use by an unfinished request.",
                param="request_id",
            )
        if (unknown := self._refuse_adapter(message.request_id, message.adapter)) is not None:
            return unknown
        refusal = refuse(message, self._limits)
        if refusal is not None:
            return Rejected(
                request_id=request_id, reason="invalid", message=refusal.message, param=refusal.param
            )
        # Between steps new requests only wait; those that the next step can take at once are not queued.
        scheduler = self.scheduler
        free_seats = max(0, scheduler.max_num_seqs - len(scheduler.running))
        waiting = len(scheduler.waiting) + self.structured.num_waiting
        problem = self._queue_limits.problem(
            running=len(scheduler.running),
            waiting=waiting,
            tokens=lambda: scheduler.queued_tokens + self.structured.queued_tokens,
            free_seats=free_seats,
            prompt=len(message.prompt_token_ids),
        )
        if problem is not None:
            return Rejected(
                request_id=request_id,
                reason="queue_full",
                message=problem,
                retry_after=retry_after(waiting, self._drain_rate.per_second(self._clock())),
            )
        seed = 0
        if message.sampling.seed is None:
            seed = derive_seed(self._seed, self._num_seeds)
            self._num_seeds += 1
        request = Request.from_message(
            message,
            client=client,
            req_id=self._num_added,
            seed=seed,
            eos_token_ids=self._executor.info.eos_token_ids,
            rope_switch=self._executor.info.rope_switch,
            pools_all=self._executor.info.pools_all,
            adapter_name=None if message.adapter is None else self.adapters.name(message.adapter),
        )
        self._num_added += 1
        if (grammar := message.sampling.grammar) is not None:
            request.after_id = message.after
            self.structured.wait_for(request, grammar, self._clock())
            return None
        return self._admit(request, message.after)

    def _refuse_adapter(self, request_id: str, adapter: int | None) -> Rejected | None:
        if adapter is None or self.adapters.serves(adapter):
            return None
        problem = "the model does not exist any more: its adapter was unloaded"
        return Rejected(request_id=request_id, reason="not_found", message=problem, param="model")

    def _admit(self, request: Request, after: str | None) -> Accepted:
        if after is not None:
            request.after = self._requests.get((request.client, after))
        self.scheduler.add(request)
        self._requests[request.client, request.request_id] = request
        return Accepted(request_id=request.request_id)

    def take_ready(self) -> list[tuple[bytes, Accepted | Rejected]]:
        """The answers to requests whose grammar has been compiled or refused, each with its client."""
        return [
            (request.client, refusal or self._admit_compiled(request))
            for request, refusal in self.structured.take_ready(self._clock())
        ]

    def _admit_compiled(self, request: Request) -> Accepted | Rejected:
        if (unknown := self._refuse_adapter(request.request_id, request.adapter)) is not None:
            self.structured.end(request)
            return unknown
        try:
            return self._admit(request, request.after_id)
        except Exception as error:  # this request's trouble
            logger.exception("request %s cannot be taken in", request.request_id)
            self.structured.end(request)
            problem = f"the request cannot be taken in: {type(error).__name__}: {error}"
            return Rejected(request_id=request.request_id, reason="internal", message=problem)

    def abort(self, client: bytes, request_ids: Iterable[str]) -> None:
        """Unknown ids are ignored."""
        for request_id in request_ids:
            self.structured.forget(client, request_id)
            request = self._requests.pop((client, request_id), None)
            if request is not None:
                self.structured.end(request)
                self.scheduler.abort(request)

    def reset_prefix_cache(self) -> None:
        """Later requests find nothing of what was computed so far."""
        self.scheduler.kv.forget()

    # --- the loop's body ------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether ``step`` has something to do, be it to collect a step that nobody needs any more."""
        return self.scheduler.busy

    @property
    def awaits_threads(self) -> bool:
        """Whether a grammar is compiled or an adapter read, which somebody has to look after."""
        return self.structured.num_waiting > 0 or self.adapters.reading

    @property
    def has_requests(self) -> bool:
        return bool(self._requests or self.structured.num_waiting)

    def step(self) -> list[Output]:
        """Launch a step if one can be planned, then commit the oldest one if the pipeline is full.

        With depth 1 the device always has the next step queued while the host commits the last one, unless
        there are drafts (``speculation``). What a
        grammar allows next depends on the tokens before: then the last step is committed while the next one's
        forward runs, and masks and sampler follow.
        """
        scheduler = self.scheduler
        now = self._clock()
        outputs = self._end_in_vain(now)
        if scheduler.needs_results():
            return outputs + self._commit()
        plan = scheduler.schedule(now)
        if scheduler.adapters.wanted:
            self.adapters.read_wanted()
        if plan is not None:
            self._drain_rate.note(now, len(plan.new))
            self._iteration_tokens.append(sum(s.num_tokens for s in plan.scheduled))
            self._executor.launch(plan)
            masks = None
            if masked := self.structured.masked(plan):
                while scheduler.num_in_flight > 1:
                    outputs += self._commit()
                masks = self.structured.masks(masked, {r.req_id: r for r in scheduler.running})
            self._executor.sample(masks)
            if scheduler.num_in_flight <= self._depth:
                return outputs
        elif not scheduler.num_in_flight:
            return outputs
        return outputs + self._commit()

    def take_adapter_answers(self) -> list[tuple[bytes, AdapterAnswer]]:
        """Of adapters that have been read, each with its client."""
        if self.adapters.retired:
            self.adapters.forget({r.adapter for r in self._requests.values() if r.adapter is not None})
        return self.adapters.take_answers()

    def _end_in_vain(self, now: float) -> list[Output]:
        """Requests whose time is up, and those whose adapter is lost."""
        outputs = self.scheduler.expire(now)
        if failed := self.adapters.take_failed():
            outputs += self.scheduler.end_without_adapter(failed)
        for output in outputs:
            self.structured.end(output.request)
            del self._requests[output.request.client, output.request.request_id]
        return outputs

    def _commit(self) -> list[Output]:
        """Wait for the oldest launched step and take in what came of it."""
        result = self._executor.collect()
        outputs = self.scheduler.commit(result, self._clock())
        self.structured.take(outputs)
        for output in outputs:
            if output.finish_reason is not None:
                del self._requests[output.request.client, output.request.request_id]
        return outputs

    # --- observation ----------------------------------------------------------------------------------

    def record_kv_events(self) -> KVEventLog:
        """What becomes of pages from now on; somebody has to take it."""
        return self.scheduler.kv.record()

    def take_stats(self) -> EngineStats:
        """A snapshot; the step sizes in it are those since the last one."""
        scheduler, counters = self.scheduler, self.scheduler.counters
        grammars = self.structured.compiler.counters
        live, cached, free = scheduler.count_blocks()
        iteration_tokens, self._iteration_tokens = self._iteration_tokens, []
        return EngineStats(
            time=self._clock(),
            running=len(scheduler.running),
            waiting=len(scheduler.waiting) + self.structured.num_waiting,
            queued_tokens=scheduler.queued_tokens,
            oldest_arrival=scheduler.oldest_arrival,
            blocks_live=live,
            blocks_cached=cached,
            blocks_free=free,
            steps=counters.steps,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            prefix_cache_queries=counters.prefix_cache_queries,
            prefix_cache_hits=counters.prefix_cache_hits,
            preemptions=counters.preemptions,
            drafts=counters.drafted,
            draft_tokens=counters.draft_tokens,
            accepted_at=counters.accepted_at.copy(),
            grammars_compiled=grammars.compiled,
            grammars_refused=grammars.refused,
            grammar_cache_hits=grammars.cache_hits,
            grammar_seconds=grammars.seconds,
            iteration_tokens=iteration_tokens,
            running_adapters=self._names(scheduler.running),
            waiting_adapters=self._names(scheduler.waiting),
        )

    def _names(self, requests: Iterable[Request]) -> list[str]:
        return self.adapters.names({r.adapter for r in requests if r.adapter is not None})

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` if a page or a request leaked. O(pages)."""
        self.scheduler.check_integrity()
        scheduled = {id(r) for r in self.scheduler.running + self.scheduler.waiting}
        assert scheduled == {id(r) for r in self._requests.values()}, "a request leaked"
