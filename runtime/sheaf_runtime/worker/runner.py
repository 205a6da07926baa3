"""Runs step plans on one device: ``prepare`` on the host, then ``forward`` and ``sample``, which are two
launches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from sheaf_kernels.cpu.memory import huge_empty
from torch import Tensor

from sheaf_runtime.config import EngineConfig
from sheaf_runtime.models.layers import Angles
from sheaf_runtime.worker.backend import Begin, make_attention
from sheaf_runtime.worker.batch import Batch, Prepared
from sheaf_runtime.worker.choose import Chosen, TokenChooser, likeliest_sampled
from sheaf_runtime.worker.drafts import joined
from sheaf_runtime.worker.loading import LoadedModel
from sheaf_runtime.worker.masks import TokenMasks
from sheaf_runtime.worker.plan import StepPlan, StepResult
from sheaf_runtime.worker.pooling import Pooled
from sheaf_runtime.worker.score import Scores, score

ANGLES_AHEAD = 64  # tokens of a step whose angles torch computes without a second thread


@dataclass(frozen=True)
class _Sampled:
    """A step whose results may still be on their way from the device; ``copied`` says when they are here."""

    prepared: Prepared
    likeliest: list[int]  # where that was all that was wanted
    chosen: list[Chosen]
    scores: list[Scores]
    pooled: Pooled | None
    copied: torch.cuda.Event | None = None

    def result(self) -> StepResult:
        """Waits for the device."""
        if self.copied is not None:
            self.copied.synchronize()
        sampled = [one for part in self.chosen for one in part.sampled()]
        if self.likeliest:
            assert self.prepared.targets is not None
            sampled = likeliest_sampled(self.prepared.targets, self.likeliest)
        return StepResult(
            step=self.prepared.plan.step,
            sampled=joined(sampled, self.prepared.plan),
            scored=[scored for part in self.scores for scored in part.scored()],
            pooled=[] if self.pooled is None else self.pooled.tolist(),
        )


@dataclass
class Step:
    """One step on its way: ``begin`` is attention's part at its turn; then what ``forward`` has computed."""

    prepared: Prepared
    begin: Begin | None = None
    angles: list[Angles] | None = None
    hidden_TC: Tensor | None = None  # of the targets' rows alone where the inputs say so
    logits_SV: Tensor | None = None  # what ``sample`` chooses from, in the order of its result
    tokens_S: npt.NDArray[np.int64] | None = None  # the likeliest ones, where that is all that is wanted
    pooled: Pooled | None = None


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
        self._pool = [tensor for pair in tensors for tensor in pair]
        self.kv_caches = [tensors[i] for i in layout.tensor_of]
        self._decoder = model.decoder
        self._pooler = model.pooler
        self._attention = make_attention(
            model.backend, self.kv_caches, layout, c, config.max_num_seqs, config.max_num_batched_tokens
        )
        # In the interpreter Triton's kernels find their arguments as they would on a card.
        self._apart = model.device.type != "cpu" or model.backend == "triton"
        self._batch = Batch(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_len=model.max_model_len,
            vocab_size=model.config.vocab_size,
            block_size=config.block_size,
            chunks=tuple(group.chunk for group in layout.groups),
            eos_token_ids=model.eos_token_ids,
            device=model.device,
            apart=self._apart,
            adapters=model.adapters,
            max_drafts=config.max_drafts,
        )
        self._chooser = TokenChooser(model.backend, self._batch)
        self._on_cuda = model.device.type == "cuda"

    def prepare(self, plan: StepPlan) -> Step:
        """All that does not depend on what the device still computes; plans come in their order. May run
        beside ``forward`` and ``sample`` of the steps before."""
        prepared = self._batch.prepare(plan)
        inputs = prepared.inputs
        if inputs is None:
            return Step(prepared)
        angles = None
        # Else the device has no positions yet, or torch's threads would be woken beside those that compute.
        if not self._apart and len(inputs.tokens_T) <= ANGLES_AHEAD:
            angles = self._decoder.angles(inputs.positions_T, inputs.prompt_lens_T)
        return Step(prepared, self._attention.plan(inputs, angles), angles)

    def forward(self, step: Step, started: Callable[[], None] = lambda: None) -> None:
        """Compute the step's tokens and the logits that ``sample`` needs. ``started`` is called when the host
        has done most of its part, except for models that are run by transformers."""
        prepared = step.prepared
        self._batch.begin(prepared)
        self._copy_pages(prepared.plan)
        if self._pooler is not None:
            self._pooler.forget(prepared.plan.ended)
        inputs, targets = prepared.inputs, prepared.targets
        if inputs is None:
            return
        assert step.begin is not None
        step.begin(started)
        computed = self._decoder.forward(
            inputs.tokens_T,
            inputs.positions_T,
            inputs.prompt_lens_T,
            self._attention,
            rows_S=inputs.rows_S,
            want=inputs.want,
            angles=step.angles,
            adapters=inputs.adapters,
        )
        step.hidden_TC, step.tokens_S = computed.hidden_TC, computed.tokens_T
        if targets is not None:
            step.logits_SV = self._logits_of(step) if computed.logits_TV is None else computed.logits_TV
        if prepared.to_pool:
            assert self._pooler is not None
            step.pooled = self._pooler.pool(computed.hidden_TC, prepared.to_pool)

    def _copy_pages(self, plan: StepPlan) -> None:
        """In the order of the requests: a page may be copied before it becomes another one's copy."""
        for new in plan.new:
            for source, target in new.copied_pages:
                for pages in self._pool:
                    pages[target].copy_(pages[source])

    def _logits_of(self, step: Step) -> Tensor:
        inputs, targets, hidden_TC = step.prepared.inputs, step.prepared.targets, step.hidden_TC
        assert inputs is not None
        assert targets is not None
        assert hidden_TC is not None
        return self._decoder.logits(
            hidden_TC if inputs.rows_S is not None else hidden_TC[targets.logit_rows_S]
        )

    def sample(self, step: Step, masks: TokenMasks | None = None) -> Callable[[], StepResult]:
        """Choose the tokens of the ``forward`` before; the result waits for the device when it is called,
        which is to be where plans are prepared."""
        prepared, targets = step.prepared, step.prepared.targets
        scores: list[Scores] = []
        if prepared.to_score:
            assert step.hidden_TC is not None
            scores = score(self._decoder.logits, step.hidden_TC, prepared.to_score, self._batch.fail)
        chosen: list[Chosen] = []
        taken: list[int] = []
        if targets is not None:
            assert step.logits_SV is not None, "sample() without forward()"
            if step.tokens_S is not None and masks is None:
                self._batch.append_likeliest(targets, taken := step.tokens_S.tolist())
            else:
                chosen = self._chooser.choose(targets, step.logits_SV, partial(self._logits_of, step), masks)
        made = _Sampled(prepared, taken, chosen, scores, step.pooled)
        return partial(self._told, _to_host(made) if self._on_cuda else made)

    def _told(self, made: _Sampled) -> StepResult:
        told = made.result()
        self._batch.release(made.prepared)
        return told


def _to_host(made: _Sampled) -> _Sampled:
    """Starts copying results from the device behind this step: a copy asked for later would wait for the next
    step as well."""

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
