"""Runs step plans on one device: ``forward``, then ``sample``, which are two launches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from sheaf_runtime.config import EngineConfig
from sheaf_runtime.worker.backend import make_attention, sample_tokens
from sheaf_runtime.worker.batch import Batch, SampleTargets, ScoreTargets
from sheaf_runtime.worker.loading import LoadedModel
from sheaf_runtime.worker.logprobs import Logprobs, logprobs_of, score
from sheaf_runtime.worker.plan import SampledTokens, ScoredTokens, StepPlan, StepResult

NO_NUMBERS = (
    "the model's logits for this request are not numbers, or what it allows and forbids leaves no token: "
    "nothing can be chosen"
)


@dataclass(frozen=True)
class _Sampled:
    """A step whose results may still be on their way from the device; ``copied`` says when they are here."""

    step: int
    targets: SampleTargets | None = None
    tokens_S: Tensor | None = None
    logprobs: Logprobs | None = None  # of the rows that asked for some
    to_score: ScoreTargets | None = None
    scores: Logprobs | None = None
    copied: torch.cuda.Event | None = None

    def result(self) -> StepResult:
        """Waits for the device."""
        if self.copied is not None:
            self.copied.synchronize()
        return StepResult(step=self.step, sampled=self._sampled(), scored=self._scored())

    def _sampled(self) -> list[SampledTokens]:
        if self.targets is None or self.tokens_S is None:
            return []
        wanted = [k for k in self.targets.logprobs if k is not None]
        logprobs = iter(self.logprobs.tolist(wanted) if self.logprobs is not None else [])
        sampled = []
        for i, (item, token) in enumerate(zip(self.targets.requests, self.tokens_S.tolist(), strict=True)):
            own = [next(logprobs)] if self.targets.logprobs[i] is not None else []
            error = self.targets.failed.get(i) or (NO_NUMBERS if token < 0 else None)
            tokens = [] if error else [token]
            sampled.append(
                SampledTokens(
                    req_id=item.req_id,
                    epoch=item.epoch,
                    token_ids=tokens,
                    logprobs=own if tokens else [],
                    error=error,
                )
            )
        return sampled

    def _scored(self) -> list[ScoredTokens]:
        if self.to_score is None or self.scores is None:
            return []
        counts, tops = self.to_score.counts, self.to_score.tops
        listed = self.scores.tolist(
            [top for count, top in zip(counts, tops, strict=True) for _ in range(count)]
        )
        ends = list(accumulate(counts))
        return [
            ScoredTokens(req_id=item.req_id, epoch=item.epoch, logprobs=listed[end - count : end])
            for item, count, end in zip(self.to_score.requests, counts, ends, strict=True)
        ]


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
            vocab_size=model.config.vocab_size,
            block_size=config.block_size,
            num_groups=len(layout.groups),
            eos_token_ids=model.eos_token_ids,
            device=model.device,
        )
        self._plan: StepPlan | None = None
        self._targets: SampleTargets | None = None
        self._logits_SV: Tensor | None = None
        self._to_score: ScoreTargets | None = None
        self._hidden_NC: Tensor | None = None  # of the prompt tokens that are scored

    @torch.inference_mode()
    def forward(self, plan: StepPlan) -> None:
        """Compute the plan's tokens and the logits that ``sample`` needs."""
        assert self._plan is None, "sample() was not called for the last plan"
        self._plan, self._targets, self._logits_SV = plan, None, None
        self._to_score = self._hidden_NC = None
        self._batch.apply(plan)
        if not plan.scheduled:
            return
        inputs, targets, self._to_score = self._batch.step_inputs(plan.scheduled)
        self._attention.prepare(inputs)
        hidden_TC = self._decoder.forward(
            inputs.tokens_T, inputs.positions_T, inputs.prompt_lens_T, self._attention
        )
        if targets.requests:
            self._targets = targets
            self._logits_SV = self._decoder.logits(hidden_TC[targets.logit_rows_S])
        if self._to_score is not None:
            self._hidden_NC = hidden_TC[self._to_score.logit_rows_N]

    @property
    def logits(self) -> Tensor | None:
        """What ``sample`` is about to choose from, [S, V]; rows are in the order of its result."""
        return self._logits_SV

    @torch.inference_mode()
    def sample(self) -> Callable[[], StepResult]:
        """Choose the tokens of the last ``forward``; the result waits for the device when it is called."""
        plan = self._plan
        assert plan is not None, "sample() without forward()"
        made = _Sampled(plan.step)
        if self._targets is not None and self._logits_SV is not None:
            made = self._choose(made, self._targets, self._logits_SV)
        if self._to_score is not None and self._hidden_NC is not None:
            to_score = self._to_score
            scores = score(self._decoder.logits, self._hidden_NC, to_score.tokens_N, max(to_score.tops))
            made = replace(made, to_score=to_score, scores=scores)
        self._plan = self._targets = self._logits_SV = self._to_score = self._hidden_NC = None
        return _to_host(made).result

    def _choose(self, made: _Sampled, targets: SampleTargets, logits_SV: Tensor) -> _Sampled:
        asked = [i for i, k in enumerate(targets.logprobs) if k is not None]
        # They are the model's own, so a copy is kept from what is adjusted.
        own_LV = logits_SV[asked] if asked else None
        logits_SV = self._batch.adjust(logits_SV, targets.adjustments)
        tokens_S = sample_tokens(self._backend, logits_SV, targets.sampling)
        self._batch.append(targets.cells_S, tokens_S)
        logprobs = None
        if own_LV is not None:
            most = max(k for k in targets.logprobs if k is not None)
            logprobs = logprobs_of(own_LV, tokens_S[asked].clamp(min=0), most)
        return replace(made, targets=targets, tokens_S=tokens_S, logprobs=logprobs)


def _to_host(made: _Sampled) -> _Sampled:
    """Starts copying results from the device behind this step: a copy asked for later would wait for the next
    step as well."""
    some = made.tokens_S if made.scores is None else made.scores.tokens_N
    if some is None or not some.is_cuda:
        return made

    def copy(tensor: Tensor) -> Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    made = replace(
        made,
        tokens_S=None if made.tokens_S is None else copy(made.tokens_S),
        logprobs=None if made.logprobs is None else made.logprobs.mapped(copy),
        scores=None if made.scores is None else made.scores.mapped(copy),
        copied=torch.cuda.Event(),  # type: ignore[no-untyped-call]
    )
    assert made.copied is not None
    made.copied.record()
    return made
