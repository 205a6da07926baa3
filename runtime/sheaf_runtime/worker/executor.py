"""The one interface between the engine and whatever runs the model (in process now, N ranks later)."""

from __future__ import annotations

from typing import Protocol

from sheaf_runtime.worker.masks import TokenMasks
from sheaf_runtime.worker.plan import KVGroup, StepPlan, StepResult


class ModelInfo(Protocol):
    """Facts of the loaded model that the engine needs."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...
    @property
    def rope_switch(self) -> int | None: ...
    @property
    def weights_bytes(self) -> int: ...
    @property
    def kv_groups(self) -> tuple[KVGroup, ...]: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...


class Executor(Protocol):
    """Steps run strictly in the order of ``launch``; ``collect`` returns results in that same order.

    ``launch`` enqueues the forward pass and returns at once; ``sample`` enqueues the sampler for the plan
    launched last, so that grammar masks (computed on the CPU while the forward runs) reach only it: they say
    which tokens some of its requests may get.
    ``collect`` blocks until the oldest uncollected step is complete. At pipeline depth 1 the engine
    launches step N+1 before it collects step N.
    """

    @property
    def info(self) -> ModelInfo: ...
    def launch(self, plan: StepPlan) -> None: ...
    def sample(self, masks: TokenMasks | None = None) -> None: ...
    def collect(self) -> StepResult: ...
    def warm_up(self) -> None: ...
    def close(self) -> None: ...
