"""From a step's logits to its tokens.

Legend: S requests that get a token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor

from sheaf_runtime.protocol.messages import TokenLogprobs
from sheaf_runtime.worker.backend import Backend, choose_tokens
from sheaf_runtime.worker.batch import Batch, SampleTargets
from sheaf_runtime.worker.failures import is_device_failure, together_or_alone
from sheaf_runtime.worker.logprobs import Logprobs, logprobs_of
from sheaf_runtime.worker.masks import TokenMasks
from sheaf_runtime.worker.plan import SampledTokens

NO_NUMBERS = (
    "the model's logits for this request are not numbers, or what it allows and forbids leaves no token: "
    "nothing can be chosen"
)


@dataclass(frozen=True)
class Chosen:
    """Tokens of some requests of a step, and the log-probabilities of those that asked. Tensors may still be
    on their way to the host. ``errors`` says, by request, why it gets none."""

    targets: SampleTargets
    tokens_S: Tensor
    logprobs: Logprobs | None
    errors: dict[int, str]

    def mapped(self, move: Callable[[Tensor], Tensor]) -> Chosen:
        logprobs = None if self.logprobs is None else self.logprobs.mapped(move)
        return replace(self, tokens_S=move(self.tokens_S), logprobs=logprobs)

    def sampled(self) -> list[SampledTokens]:
        listed, problems = self._listed()
        logprobs = iter(listed)
        made = []
        for item, k, token in zip(
            self.targets.requests, self.targets.logprobs, self.tokens_S.tolist(), strict=True
        ):
            own = next(logprobs) if k is not None and self.logprobs is not None else []
            error = self.errors.get(item.req_id) or (NO_NUMBERS if token < 0 else problems.get(item.req_id))
            made.append(
                SampledTokens(
                    req_id=item.req_id,
                    epoch=item.epoch,
                    token_ids=[] if error else [token],
                    logprobs=[] if error else own,
                    error=error,
                )
            )
        return made

    def _listed(self) -> tuple[list[list[TokenLogprobs]], dict[int, str]]:
        """What each of those that asked is told, and by request, why one is told nothing."""
        if self.logprobs is None:
            return [], {}
        asked = [
            (item.req_id, k)
            for item, k in zip(self.targets.requests, self.targets.logprobs, strict=True)
            if k is not None
        ]
        try:
            return [[one] for one in self.logprobs.tolist([k for _, k in asked])], {}
        except Exception as error:
            if is_device_failure(error):
                raise
        listed: list[list[TokenLogprobs]] = []
        problems: dict[int, str] = {}
        for place, (req_id, k) in enumerate(asked):
            try:
                listed.append(self.logprobs.mapped(itemgetter(slice(place, place + 1))).tolist([k]))
            except Exception as error:
                listed.append([])
                problems[req_id] = f"its log-probabilities cannot be told: {type(error).__name__}: {error}"
        return listed, problems


def likeliest_sampled(targets: SampleTargets, tokens: list[int]) -> list[SampledTokens]:
    """What requests are told that want their likeliest token and no more; -1 for none."""
    return [
        SampledTokens(
            req_id=item.req_id,
            epoch=item.epoch,
            token_ids=[] if token < 0 else [token],
            error=NO_NUMBERS if token < 0 else None,
        )
        for item, token in zip(targets.requests, tokens, strict=True)
    ]


class TokenChooser:
    def __init__(self, backend: Backend, batch: Batch) -> None:
        self._backend = backend
        self._batch = batch

    def choose(
        self,
        targets: SampleTargets,
        logits_SV: Tensor,
        again: Callable[[], Tensor],
        masks: TokenMasks | None,
    ) -> list[Chosen]:
        """``logits_SV`` may be overwritten; ``again`` makes them anew. Raises what the device raises."""

        def alone() -> Iterator[Callable[[], Chosen]]:
            anew_SV = again()
            for i in range(len(targets.requests)):
                yield partial(self._together, targets.one(i), anew_SV[i : i + 1], masks)

        parts = together_or_alone(
            "choice of tokens",
            partial(self._together, targets, logits_SV, masks),
            alone,
            lambda index, error: self._failed(targets.one(index), logits_SV.device, error),
        )
        for part in parts:
            self._batch.append(part.targets, part.tokens_S)
        return parts

    def _together(self, targets: SampleTargets, logits_SV: Tensor, masks: TokenMasks | None) -> Chosen:
        asked = [i for i, k in enumerate(targets.logprobs) if k is not None]
        # They are the model's own, so a copy is kept from what is adjusted.
        own_LV = logits_SV[asked] if asked else None
        wanted = targets.wanted
        if masks is not None:
            rows = [(s.req_id, place) for s, place in zip(targets.requests, targets.places, strict=True)]
            wanted = self._batch.sampling.masked(wanted, rows, masks)
        tokens_S = choose_tokens(self._backend, logits_SV, wanted, targets.parameters, targets.there)
        logprobs = None
        if own_LV is not None:
            most = max(k for k in targets.logprobs if k is not None)
            logprobs = logprobs_of(own_LV, tokens_S[asked].clamp(min=0), most)
        errors = {row.request.req_id: row.failed for row in targets.mirrored if row.failed is not None}
        return Chosen(targets, tokens_S, logprobs, errors)

    def _failed(self, target: SampleTargets, device: torch.device, error: Exception) -> Chosen:
        (row,) = target.mirrored
        self._batch.fail(row, "given a token", error)
        none = torch.full((1,), -1, dtype=torch.int64, device=device)
        assert row.failed is not None
        return Chosen(target, none, None, {row.request.req_id: row.failed})
