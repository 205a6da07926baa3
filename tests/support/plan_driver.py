"""Drives a ``Runner`` with step plans of the test's own making, and spoils memory that nobody may read."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from sheaf_kernels.cpu.paged_attention import key_panels, value_pairs
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.loading import load_model
from sheaf_runtime.worker.plan import NewRequest, Scheduled, StepPlan
from sheaf_runtime.worker.runner import Runner
from torch import Tensor

GREEDY = SamplingParams(temperature=0.0, seed=0, max_tokens=1000)


@dataclass
class Active:
    """A request as the engine would see it: ``tokens`` are prompt and output."""

    req_id: int
    prompt: list[int]
    sampling: SamplingParams
    adapter: int | None = None
    tokens: list[int] = field(default_factory=list)
    pages: list[list[int]] = field(default_factory=list)  # of each KV group; all are kept
    computed: int = 0
    logits: list[Tensor] = field(default_factory=list)  # of each sampled token

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.prompt) :]


class PlanDriver:
    """``page_seed`` shuffles which physical pages are handed out; ``poison`` fills every slot that holds no
    computed token of a live request with NaN before each step."""

    def __init__(
        self,
        folder: str,
        *,
        num_blocks: int = 80,
        page_seed: int | None = None,
        poison: bool = False,
        **options: Any,
    ) -> None:
        config = EngineConfig(model=folder, device="cpu", num_gpu_blocks_override=num_blocks, **options)
        self.model = load_model(config)
        self.runner = Runner(self.model, config, num_blocks)
        self.block_size = config.block_size
        self.layout = self.model.kv_layout(config.block_size)
        self.key_order: Callable[[Tensor], Tensor] = lambda keys: keys
        self.value_order: Callable[[Tensor], Tensor] = lambda values: values
        if self.model.backend == "cpu":
            self.key_order, self.value_order = key_panels, value_pairs
        self._poison = poison
        self._free = list(range(num_blocks - 1, 0, -1))
        if page_seed is not None:
            random.Random(page_seed).shuffle(self._free)
        self._active: dict[int, Active] = {}
        self._ended: list[int] = []
        self._unknown: set[int] = set()
        self._steps = 0
        self._next_id = 0

    def add(self, prompt: list[int], sampling: SamplingParams = GREEDY, adapter: int | None = None) -> Active:
        pages: list[list[int]] = [[] for _ in self.layout.groups]
        request = Active(self._next_id, prompt, sampling, adapter, list(prompt), pages)
        self._next_id += 1
        self._active[request.req_id] = request
        self._unknown.add(request.req_id)
        return request

    def end(self, request: Active) -> None:
        del self._active[request.req_id]
        self._free += [page for table in request.pages for page in table]
        if request.req_id in self._unknown:
            self._unknown.discard(request.req_id)
        else:
            self._ended.append(request.req_id)

    def plan(self, chunks: list[tuple[Active, int]]) -> StepPlan:
        """The next step, which computes so many more tokens of each request."""
        new, scheduled = [], []
        for request, count in chunks:
            end = request.computed + count
            needed = -(-end // self.block_size)
            block_ids = [[self._free.pop() for _ in range(needed - len(held))] for held in request.pages]
            for held, pages in zip(request.pages, block_ids, strict=True):
                held += pages
            if request.req_id in self._unknown:
                self._unknown.discard(request.req_id)
                new.append(
                    NewRequest(
                        req_id=request.req_id,
                        epoch=0,
                        token_ids=list(request.tokens),
                        num_prompt_tokens=len(request.prompt),
                        num_computed_tokens=0,
                        sampling=request.sampling,
                        block_ids=block_ids,
                        adapter=request.adapter,
                    )
                )
                block_ids = [[] for _ in block_ids]
            scheduled.append(
                Scheduled(
                    req_id=request.req_id,
                    epoch=0,
                    start=request.computed,
                    num_tokens=count,
                    new_block_ids=block_ids,
                    sample=end == len(request.tokens),
                )
            )
        self._steps, ended, self._ended = self._steps + 1, self._ended, []
        return StepPlan(step=self._steps, ended=ended, new=new, scheduled=scheduled)

    def step(self, chunks: list[tuple[Active, int]]) -> None:
        """Compute so many more tokens of each request."""
        step = self.runner.prepare(self.plan(chunks))
        if self._poison:
            self.spoil()
        with torch.no_grad():
            self.runner.forward(step)
        logits = torch.empty(0) if step.logits_SV is None else step.logits_SV.clone()
        with torch.no_grad():
            result = self.runner.sample(step)()
        for request, count in chunks:
            request.computed += count
        for row, sampled in enumerate(result.sampled):
            request = self._active[sampled.req_id]
            request.tokens += sampled.token_ids
            request.logits.append(logits[row])

    def generate(self, requests: list[Active], max_tokens: int, *, chunk: int = 1000) -> None:
        """Prefill in chunks and decode, all requests side by side, until each has ``max_tokens``."""
        while todo := [r for r in requests if len(r.output) < max_tokens]:
            self.step([(r, min(chunk, len(r.tokens) - r.computed)) for r in todo])

    def spoil(self) -> None:
        pages, _, slots, _ = self.runner.kv_caches[0][0].shape
        for tensor in range(self.layout.tensors):
            held = torch.zeros(pages, slots, dtype=torch.bool)
            for request in self._active.values():
                for group, table in zip(self.layout.groups, request.pages, strict=True):
                    if tensor < len(group.layers):
                        for position in range(request.computed):
                            held[table[position // slots], position % slots] = True
            layer = self.layout.tensor_of.index(tensor)
            keys, values = self.runner.kv_caches[layer]
            unheld = (~held[:, None, :, None]).expand_as(keys)
            for cache, order in ((keys, self.key_order), (values, self.value_order)):
                cache.masked_fill_(order(unheld.to(cache.dtype)) != 0, torch.nan)
