"""Runs step plans on one device: ``forward``, then ``sample``, which are two launches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from sheaf_kernels.cpu.memory import huge_empty
from torch import Tensor

from sheaf_runtime.config import EngineConfig
from sheaf_runtime.worker.backend import make_attention
from sheaf_runtime.worker.batch import Batch, SampleTargets, ScoreTarget
from sheaf_runtime.worker.choose import Chosen, TokenChooser
from sheaf_runtime.worker.loading import LoadedModel
from sheaf_runtime.worker.masks import TokenMasks
from sheaf_runtime.worker.plan import StepPlan, StepResult
from sheaf_runtime.worker.pooling import Pooled
from sheaf_runtime.worker.score import Scores, score


@dataclass(frozen=True)
class _Sampled:
    """A step whose results may still be on their way from the device; ``copied`` says when they are here."""

    step: int
    chosen: list[Chosen]
    scores: list[Scores]
    pooled: Pooled | None
    copied: torch.cuda.Event | None = None

    def result(self) -> StepResult:
        """Waits for the device."""
        if self.copied is not None:
            self.copied.synchronize()
        return StepResult(
            step=self.step,
            sampled=[sampled for part in self.chosen for sampled in part.sampled()],
            scored=[scored for part in self.scores for scored in part.scored()],
            pooled=[] if self.pooled is None else self.pooled.tolist(),
        )


class Runner:
    """One model, its KV pool of ``num_blocks`` pages (null page included) and the batch.

    ``kv_caches`` holds a (keys, values) pair for each layer, [page, kv_head, slot, dim] each; layers of
    different KV groups may have the same.
    """

    def __init__(self, model: LoadedModel, config: EngineConfig, num_blocks: int) -> None:
        c = model.config.attention
        shape = (num_blocks, c.num_kv_heads, config.block_size, c.head_dim)
        layout = model.kv_layout(config.block_size)

        def pool() -> Tensor:
            # Not zeroed: on CPU the memory is then taken page by page, as it comes into use.
            if model.device.type == "cpu":
                return huge_empty(shape, model.dtype)
            return torch.empty(shape, dtype=model.dtype, device=model.device)

        tensors = [(pool(), pool()) for _ in range(layout.tensors)]
        self.kv_caches = [tensors[i] for i in layout.tensor_of]
        self._decoder = model.decoder
        self._pooler = model.pooler
        self._attention = make_attention(
            model.backend, self.kv_caches, layout, c, config.max_num_seqs, config.max_num_batched_tokens
        )
        self._batch = Batch(
            max_num_seqs=config.max_num_seqs,
            max_len=model.max_model_len,
            vocab_size=model.config.vocab_size,
            block_size=config.block_size,
            chunks=tuple(group.chunk for group in layout.groups),
            eos_token_ids=model.eos_token_ids,
            device=model.device,
        )
        self._chooser = TokenChooser(model.backend, self._batch)
        self._plan: StepPlan | None = None
        self._targets: SampleTargets | None = None
        self._logits_SV: Tensor | None = None
        self._to_score: list[ScoreTarget] = []
        self._hidden_TC: Tensor | None = None  # of the targets' rows alone where it is narrowed
        self._narrowed = False
        self._pooled: Pooled | None = None

    @torch.inference_mode()
    def forward(self, plan: StepPlan, started: Callable[[], None] = lambda: None) -> None:
        """Compute the plan's tokens and the logits that ``sample`` needs. ``started`` is called when the host
        has done most of its part, except for models that are run by transformers."""
        assert self._plan is None, "sample() was not called for the last plan"
        self._plan = plan
        self._batch.apply(plan)
        if self._pooler is not None:
            self._pooler.forget(plan.ended)
        if not plan.scheduled:
            return
        inputs, targets, self._to_score, to_pool = self._batch.step_inputs(plan.scheduled)
        self._attention.prepare(inputs, started)
        every = self._to_score or to_pool or len(targets.requests) == len(inputs.tokens_T)
        self._narrowed = not every
        self._hidden_TC = self._decoder.forward(
            inputs.tokens_T,
            inputs.positions_T,
            inputs.prompt_lens_T,
            self._attention,
            targets.logit_rows_S if self._narrowed else None,
        )
        if targets.requests:
            self._targets = targets
            self._logits_SV = self._logits_of(targets)
        if to_pool:
            assert self._pooler is not None
            self._pooled = self._pooler.pool(self._hidden_TC, to_pool)

    def _logits_of(self, targets: SampleTargets) -> Tensor:
        assert self._hidden_TC is not None
        hidden_TC = self._hidden_TC
        # Where each request has one token, they are in order.
        mine = self._narrowed or len(targets.requests) == len(hidden_TC)
        return self._decoder.logits(hidden_TC if mine else hidden_TC[targets.logit_rows_S])

    @property
    def logits(self) -> Tensor | None:
        """What ``sample`` is about to choose from, [S, V]; rows are in the order of its result."""
        return self._logits_SV

    @torch.inference_mode()
    def sample(self, masks: TokenMasks | None = None) -> Callable[[], StepResult]:
        """Choose the tokens of the last ``forward``; the result waits for the device when it is called."""
        plan, targets = self._plan, self._targets
        assert plan is not None, "sample() without forward()"
        scores: list[Scores] = []
        if self._to_score:
            assert self._hidden_TC is not None
            scores = score(self._decoder.logits, self._hidden_TC, self._to_score, self._batch.fail)
        chosen: list[Chosen] = []
        if targets is not None:
            assert self._logits_SV is not None
            chosen = self._chooser.choose(targets, self._logits_SV, lambda: self._logits_of(targets), masks)
        self._plan = self._targets = self._logits_SV = self._hidden_TC = None
        self._to_score = []
        pooled, self._pooled = self._pooled, None
        return _to_host(_Sampled(plan.step, chosen, scores, pooled)).result


def _to_host(made: _Sampled) -> _Sampled:
    """Starts copying results from the device behind this step: a copy asked for later would wait for the next
    step as well."""
    some = [part.tokens_S for part in made.chosen] + [part.scores.tokens_N for part in made.scores]
    some += [] if made.pooled is None else [made.pooled.numbers]
    if not some or not some[0].is_cuda:
        return made

    def copy(tensor: Tensor) -> Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    copied: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    made = replace(
        made,
        chosen=[part.mapped(copy) for part in made.chosen],
        scores=[part.mapped(copy) for part in made.scores],
        pooled=None if made.pooled is None else made.pooled.mapped(copy),
        copied=copied,
    )
    copied.record()
    return made
