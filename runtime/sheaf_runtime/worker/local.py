"""The executor that runs the model in this process."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock

import msgspec
import torch
from torch import Tensor

from sheaf_runtime.config import EngineConfig
from sheaf_runtime.worker.device_thread import DeviceThread, Inline
from sheaf_runtime.worker.loading import LoadedModel, dtype_name, load_model, resolve_device
from sheaf_runtime.worker.masks import TokenMasks
from sheaf_runtime.worker.memory import (
    RequestSize,
    available_memory,
    cpu_pool_memory,
    describe_pool,
    pages_that_fit,
)
from sheaf_runtime.worker.plan import KVGroup, StepPlan, StepResult
from sheaf_runtime.worker.runner import Runner, Step
from sheaf_runtime.worker.step_timer import CudaTimer, HostTimer
from sheaf_runtime.worker.warmup import warm_up_plans

logger = logging.getLogger(__name__)
CPU_WARM_UP_TOKENS, CPU_WARM_UP_SEQS = 96, 2


@dataclass(frozen=True)
class LocalModelInfo:
    """See ``worker.executor.ModelInfo``. ``num_blocks`` counts the null page. Prompts longer than
    ``rope_switch`` have other keys for the same tokens."""

    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    rope_switch: int | None
    weights_bytes: int
    kv_groups: tuple[KVGroup, ...]
    num_blocks: int
    generates: bool
    pooled_size: int | None
    pools_all: bool
    dtype: str
    device: str


class _Launched:
    """A step that was launched. ``step`` is what preparing it gave, or why it could not be prepared. Gates
    are locks that are held until they may be passed."""

    def __init__(self, runner: Runner, step: Step | Exception, timer: HostTimer | CudaTimer) -> None:
        self._runner = runner
        self._step = step
        self._timer = timer
        self._error: BaseException | None = None
        self._result: Callable[[], StepResult]
        self._begun = False
        self._started, self._done = Lock(), Lock()
        self._started.acquire()
        self._done.acquire()

    def forward(self) -> None:
        try:
            if isinstance(self._step, Exception):
                raise self._step
            with self._timer:
                self._runner.forward(self._step, self._start)
        except BaseException as error:
            self._error = error
        self._start()

    def _start(self) -> None:
        if not self._begun:
            self._begun = True
            self._started.release()

    def sample(self, masks: TokenMasks | None) -> None:
        try:
            if self._error is None:
                assert isinstance(self._step, Step)
                with self._timer:
                    self._result = self._runner.sample(self._step, masks)
        except BaseException as error:
            self._error = error
        self._done.release()

    def wait_until_started(self) -> None:
        """Until the host has done its part of the forward, or that has failed."""
        with self._started:
            pass

    def result(self) -> StepResult:
        """Waits for the sampler. Raises what the step has raised."""
        with self._done:
            if self._error is not None:
                raise self._error
            return msgspec.structs.replace(self._result(), seconds=self._timer.seconds())


class LocalExecutor:
    """Loads the model and makes its KV pool.

    On CPU one thread stands in for a CUDA stream: ``launch`` and ``sample`` return at once and steps run in
    order. ``launch`` prepares its step while the one before computes. An exception of a step is raised by the
    ``collect`` of that step.

    Raises:
        ValueError: the model cannot be served or does not fit; the message says what to change.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        on_cpu = resolve_device(config.device).type == "cpu"
        self._timer: type[HostTimer | CudaTimer] = HostTimer if on_cpu else CudaTimer
        self._device: DeviceThread | Inline = DeviceThread() if on_cpu else Inline()
        try:
            self._load(config)
        except BaseException:
            self._device.close()
            raise

    def _load(self, config: EngineConfig) -> None:
        model = self._device.call(load_model, config)
        num_blocks = _num_blocks(model, config)
        layout = model.kv_layout(config.block_size)
        logger.info(describe_pool(layout.groups, num_blocks, _request_size(model, config)))
        c = model.config
        self.info = LocalModelInfo(
            vocab_size=c.vocab_size,
            max_model_len=model.max_model_len,
            eos_token_ids=model.eos_token_ids,
            rope_switch=c.rope_switch,
            weights_bytes=model.weights_bytes,
            kv_groups=layout.groups,
            num_blocks=num_blocks,
            generates=model.pooling is None,
            pooled_size=model.pooled_size,
            pools_all=model.pooling is not None and model.pooling.mode == "mean",
            dtype=dtype_name(model.dtype),
            device=str(model.device),
        )
        self._adapters = model.adapters
        self._runner: Runner | None = self._device.call(Runner, model, config, num_blocks)
        self._launched: deque[_Launched] = deque()

    @property
    def kv_caches(self) -> list[tuple[Tensor, Tensor]]:
        """(keys, values) of each layer, [page, kv_head, slot, dim] each."""
        return self._running().kv_caches

    def launch(self, plan: StepPlan) -> None:
        runner = self._running()
        step: Step | Exception
        try:
            step = runner.prepare(plan)
        except Exception as error:
            step = error
        launched = _Launched(runner, step, self._timer())
        self._launched.append(launched)
        self._device.submit(launched.forward)

    def sample(self, masks: TokenMasks | None = None) -> None:
        self._running()
        self._device.submit(partial(self._launched[-1].sample, masks))

    def collect(self) -> StepResult:
        launched = self._launched.popleft()
        if self._launched:
            # What came of this step is dealt with while the next one computes, not while Python begins that:
            # two threads of Python would hold each other up, and the device would wait for both.
            self._launched[0].wait_until_started()
        return launched.result()

    def load_adapter(self, id_: int, path: str) -> None:
        """Raises ``AdapterError``."""
        assert self._adapters is not None, "without --enable-lora"
        with torch.no_grad():
            self._adapters.load(id_, path)

    def drop_adapter(self, id_: int) -> None:
        assert self._adapters is not None
        self._adapters.drop(id_)

    def warm_up(self) -> None:
        """Run the shapes that matter once; needs an idle executor."""
        assert not self._launched
        config = self._config
        if self._timer is HostTimer:  # no shape is compiled for or measured: a few rows warm up everything
            config = msgspec.structs.replace(
                config,
                max_num_batched_tokens=min(config.max_num_batched_tokens, CPU_WARM_UP_TOKENS),
                max_num_seqs=min(config.max_num_seqs, CPU_WARM_UP_SEQS),
            )
        for plan in warm_up_plans(
            config,
            self.info.max_model_len,
            self.info.num_blocks,
            len(self.info.kv_groups),
            pooling=not self.info.generates,
        ):
            self.launch(plan)
            self.sample()
            self.collect()

    def close(self) -> None:
        """Let the steps under way finish, then give the memory back. May be called twice."""
        self._device.close()
        self._launched.clear()
        self._runner = self._adapters = None

    def _running(self) -> Runner:
        if self._runner is None:
            raise RuntimeError("the executor is closed")
        return self._runner


def _num_blocks(model: LoadedModel, config: EngineConfig) -> int:
    if (override := config.num_gpu_blocks_override) is not None:
        if override < 2:
            raise ValueError(
                f"--num-gpu-blocks-override must be at least 2 (one is the null page), got {override}"
            )
        most = available_memory() // model.kv_layout(config.block_size).groups[0].page_bytes
        if model.device.type == "cpu" and override > most:  # the kernel would grant it, and kill us later
            raise ValueError(f"--num-gpu-blocks-override {override}: there is memory for {most} blocks")
        return override
    if model.device.type == "cuda":
        memory, flag = _cuda_pool_memory(model, config), "--gpu-memory-utilization"
        memory -= _adapters_bytes(model, config.max_loras)
    else:
        available = available_memory() - _adapters_bytes(model, config.most_cpu_loras)
        memory, flag = cpu_pool_memory(available, config.kv_cache_memory), "--kv-cache-memory"
    groups, size = model.kv_layout(config.block_size).groups, _request_size(model, config)
    pages = pages_that_fit(memory, groups, size, flag=flag)
    return min(pages, config.max_num_seqs * size.most_pages(groups) + 1)


def _adapters_bytes(model: LoadedModel, count: int) -> int:
    """Of so many adapters of the highest rank."""
    return 0 if model.adapters is None else count * model.adapters.most_bytes


def _request_size(model: LoadedModel, config: EngineConfig) -> RequestSize:
    return RequestSize(
        max_len=model.max_model_len,
        block_size=config.block_size,
        in_flight_tokens=(config.pipeline_depth + 1) * config.max_num_batched_tokens,
    )


def _cuda_pool_memory(model: LoadedModel, config: EngineConfig) -> int:
    """What ``--gpu-memory-utilization`` leaves beside other processes, the weights and the largest step."""
    torch.cuda.reset_peak_memory_stats(model.device)
    pages = -(-config.max_num_batched_tokens // config.block_size) + config.max_num_seqs + 1
    probe = Runner(model, config, pages)
    num_groups = len(model.kv_layout(config.block_size).groups)
    pooling = model.pooling is not None
    for plan in warm_up_plans(config, model.max_model_len, pages, num_groups, pooling=pooling):
        step = probe.prepare(plan)
        with torch.no_grad():
            probe.forward(step)
            probe.sample(step)()
    peak = torch.cuda.max_memory_allocated(model.device)
    free, total = torch.cuda.mem_get_info(model.device)
    others = total - free - torch.cuda.memory_reserved(model.device)
    del probe
    torch.cuda.empty_cache()
    return int(total * config.gpu_memory_utilization) - peak - others
