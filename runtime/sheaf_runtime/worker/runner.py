"""Runs step plans on one device: ``forward``, then ``sample``, which are two launches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sheaf_runtime.config import EngineConfig
from sheaf_runtime.worker.backend import make_attention, sample_tokens
from sheaf_runtime.worker.batch import Batch, SampleTargets
from sheaf_runtime.worker.loading import LoadedModel
from sheaf_runtime.worker.plan import SampledTokens, StepPlan, StepResult


@dataclass(frozen=True)
class _Sampled:
    """A step whose tokens may still be on their way from the device; ``copied`` says when they are here."""

    step: int
    targets: SampleTargets | None
    tokens_S: Tensor | None
    copied: torch.cuda.Event | None = None

    def result(self) -> StepResult:
        """Waits for the device."""
        if self.targets is None or self.tokens_S is None:
            return StepResult(step=self.step, sampled=[])
        if self.copied is not None:
            self.copied.synchronize()
        sampled = [
            SampledTokens(req_id=s.req_id, epoch=s.epoch, token_ids=[token])
            for s, token in zip(self.targets.requests, self.tokens_S.tolist(), strict=True)
        ]
        return StepResult(step=self.step, sampled=sampled)


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
            return torch.empty(shape, dtype=model.dtype, device=model.device)

        tensors = [(pool(), pool()) for _ in range(layout.tensors)]
        self.kv_caches = [tensors[i] for i in layout.tensor_of]
        self._decoder = model.decoder
        self._backend = model.backend
        self._attention = make_attention(model.backend, self.kv_caches, layout, c, config.max_num_seqs)
        self._batch = Batch(
            max_num_seqs=config.max_num_seqs,
            max_len=model.max_model_len,
            block_size=config.block_size,
            num_groups=len(layout.groups),
            eos_token_ids=model.config.eos_token_ids,
            device=model.device,
        )
        self._plan: StepPlan | None = None
        self._targets: SampleTargets | None = None
        self._logits_SV: Tensor | None = None

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> None:
        """Compute the plan's tokens and the logits that ``sample`` needs."""
        assert self._plan is None, "sample() was not called for the last plan"
        self._plan, self._targets, self._logits_SV = plan, None, None
        self._batch.apply(plan)
        if not plan.scheduled:
            return
        inputs, targets = self._batch.step_inputs(plan.scheduled)
        self._attention.prepare(inputs)
        hidden_TC = self._decoder.forward(
            inputs.tokens_T, inputs.positions_T, inputs.prompt_lens_T, self._attention
        )
        if targets.requests:
            self._targets = targets
            self._logits_SV = self._decoder.logits(hidden_TC[targets.logit_rows_S])

    @property
    def logits(self) -> Tensor | None:
        """What ``sample`` is about to choose from, [S, V]; rows are in the order of its result."""
        return self._logits_SV

    @torch.inference_mode()
    def sample(self) -> Callable[[], StepResult]:
        """Choose the tokens of the last ``forward``; the result waits for the device when it is called."""
        plan, targets, logits_SV = self._plan, self._targets, self._logits_SV
        assert plan is not None, "sample() without forward()"
        self._plan = self._targets = self._logits_SV = None
        if targets is None or logits_SV is None:
            return _Sampled(plan.step, None, None).result
        tokens_S = sample_tokens(self._backend, logits_SV, targets.sampling)
        self._batch.append(targets.cells_S, tokens_S)
        if tokens_S.is_cuda:
            # Copied now, behind this step: a copy asked for later would wait for the next step as well.
            host_S = torch.empty(tokens_S.shape, dtype=tokens_S.dtype, pin_memory=True)
            host_S.copy_(tokens_S, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
            return _Sampled(plan.step, targets, host_S, copied).result
        return _Sampled(plan.step, targets, tokens_S).result
