"""The frozen configuration of each process. Derived values (block count, resolved dtype) live elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import msgspec

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu", "cuda"]
AttentionBackend = Literal["auto", "torch", "triton", "cpu"]
# What linear layers become at load, or the format that a checkpoint has them in.
Quantization = Literal["none", "int8", "gptq", "awq", "compressed-tensors"]
ModelImpl = Literal["auto", "native", "transformers"]
Runner = Literal["auto", "generate", "pooling"]
Convert = Literal["auto", "none", "embed", "classify"]
PoolingType = Literal["LAST", "MEAN"]

DEFAULT_LOOKUP = 5
MOST_DRAFTS = 64  # of one request in a step


class PoolerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """vLLM's ``--pooler-config``, which beats what the folder says. ``use_activation``: embeddings are
    normalised; ``dimensions``: they are cut to so many."""

    pooling_type: PoolingType | None = None
    seq_pooling_type: PoolingType | None = None
    use_activation: bool | None = None
    dimensions: int | None = None


class KVEventsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's ``--kv-events-config``. ``hwm``: batches that may wait for a subscriber before it loses some;
    ``buffer_steps``: batches that can be replayed."""

    enable_kv_cache_events: bool = False
    publisher: Literal["null", "zmq"] = "zmq"
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    buffer_steps: int = 10_000
    hwm: int = 100_000
    topic: str = ""

    @property
    def enabled(self) -> bool:
        return self.enable_kv_cache_events and self.publisher == "zmq"


class SpeculativeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """vLLM's ``--speculative-config``. At most ``num_speculative_tokens`` are proposed at a time: those that
    followed the latest occurrence of the request's last n tokens, n from ``prompt_lookup_max`` down to
    ``prompt_lookup_min``. One of these that is not given is as the other; 5 where none is."""

    method: Literal["ngram"]
    num_speculative_tokens: int
    prompt_lookup_max: int | None = None
    prompt_lookup_min: int | None = None

    @property
    def lookup(self) -> tuple[int, int]:
        """(shortest, longest) n."""
        shortest, longest = self.prompt_lookup_min, self.prompt_lookup_max
        if shortest is None:
            shortest = DEFAULT_LOOKUP if longest is None else longest
        return shortest, shortest if longest is None else longest


class LoraModule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An adapter by the name that requests choose it with. ``base_model_name``: of the model's names the one
    that ``/v1/models`` gives as its parent."""

    name: str
    path: str
    base_model_name: str | None = None


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the engine core needs. Names are vLLM's flags with underscores.

    ``kv_cache_memory`` is in bytes and sizes the pool on CPU; ``gpu_memory_utilization`` is the fraction of
    the card for weights, activations and pool together. ``num_gpu_blocks_override`` beats both. A prompt of
    more than ``long_prefill_token_threshold`` tokens (0: half of ``max_num_batched_tokens``) is long: it
    leaves room in each step for shorter ones that wait, and at most ``max_num_partial_prefills`` of them are
    computed side by side. ``target_inter_token_ms``: what a step with decodes may last, by sizing the share
    of prompts in it; None: see ``engine/prompt_share``. ``target_ttft_ms``: until the first token; prompts
    then go by the slack that is left to them. ``max_waiting_requests`` and ``max_waiting_tokens`` (of
    prompts; None: any number) bound what waits. Without ``seed`` each start draws its own. ``quantization``
    is what linear layers become at load, or what they are stored in, which need not be said. At most
    ``max_loras`` adapters are in one batch, and ``max_cpu_loras`` (None: as many) in memory. ``hf_overrides``
    replace keys of ``config.json``. ``generation_config``: see ``generation_folder``.
    """

    model: str
    dtype: Dtype = "auto"
    device: Device = "auto"
    attention_backend: AttentionBackend = "auto"
    quantization: Quantization = "none"
    batch_invariant: bool = False
    model_impl: ModelImpl = "auto"
    runner: Runner = "auto"
    convert: Convert = "auto"
    pooler_config: PoolerConfig | None = None
    hf_overrides: dict[str, Any] = {}
    generation_config: str = "auto"
    max_model_len: int | None = None
    block_size: int = 16
    gpu_memory_utilization: float = 0.9
    kv_cache_memory: int | None = None
    num_gpu_blocks_override: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_waiting_requests: int = 1024
    max_waiting_tokens: int | None = None
    long_prefill_token_threshold: int = 0
    max_num_partial_prefills: int = 1
    target_inter_token_ms: float | None = None
    target_ttft_ms: float | None = None
    enable_prefix_caching: bool = True
    kv_events_config: KVEventsConfig = KVEventsConfig()
    enable_lora: bool = False
    lora_modules: tuple[LoraModule, ...] = ()
    max_loras: int = 1
    max_lora_rank: int = 16
    max_cpu_loras: int | None = None
    pipeline_depth: Literal[0, 1] = 1
    speculative_config: SpeculativeConfig | None = None
    seed: int | None = None

    @property
    def max_drafts(self) -> int:
        """Tokens that are proposed for one request in a step."""
        return 0 if self.speculative_config is None else self.speculative_config.num_speculative_tokens

    @property
    def most_cpu_loras(self) -> int:
        return self.max_loras if self.max_cpu_loras is None else self.max_cpu_loras


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the API process needs beside ``EngineConfig``. Times are seconds.

    ``revision`` and ``hf_token`` are for a model of the hub.
    Without ``tool_call_parser`` the chat template tells which one reads the model's calls;
    ``enable_auto_tool_choice`` insists that one is found. ``override_generation_config`` beats what
    the file of ``EngineConfig.generation_config`` says about sampling.
    """

    revision: str | None = None
    hf_token: str | None = None
    host: str = "0.0.0.0"
    port: int = 8000
    served_model_name: tuple[str, ...] = ()
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    api_key: tuple[str, ...] = ()
    api_key_file: str | None = None
    allowed_origins: tuple[str, ...] = ("*",)
    max_body_size: int = 16 * 2**20
    access_log: bool = True
    otlp_traces_endpoint: str | None = None
    chat_template: str | None = None
    trust_request_chat_template: bool = False
    tool_call_parser: str | None = None
    enable_auto_tool_choice: bool = False
    exclude_tools_when_tool_choice_none: bool = False
    reasoning_parser: str | None = None
    default_chat_template_kwargs: dict[str, Any] = {}
    override_generation_config: dict[str, Any] = {}
    allow_runtime_lora_updating: bool = False
    adapters_file: str | None = None
    lame_duck: float = 10.0
    drain_timeout: float = 120.0
    stall_timeout: float = 120.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"


MOST_SEQS = 2**16  # each has rows of its own in memory, whether it runs or not


def check_config(config: EngineConfig, spell: Callable[[str], str] = str) -> None:
    """Raise ``ValueError`` naming the field that makes no sense, as ``spell`` writes it."""
    at_least = (
        ("block_size", 1),
        ("max_num_seqs", 1),
        ("max_num_batched_tokens", 1),
        ("max_waiting_requests", 0),
        ("max_waiting_tokens", 1),
        ("long_prefill_token_threshold", 0),
        ("max_num_partial_prefills", 1),
        ("num_gpu_blocks_override", 2),  # one is the null page
        ("max_loras", 1),
        ("max_lora_rank", 1),
        ("max_cpu_loras", config.max_loras),
    )
    for name, lowest in at_least:
        value = getattr(config, name)
        if value is not None and value < lowest:
            raise ValueError(f"{spell(name)} must be at least {lowest}, got {value}")
    for name in ("target_inter_token_ms", "target_ttft_ms"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{spell(name)} must be a number of milliseconds above 0, got {value}")
    if config.lora_modules and not config.enable_lora:
        raise ValueError(f"{spell('lora_modules')} needs {spell('enable_lora')} beside it")
    if config.speculative_config is not None:
        _check_speculation(config.speculative_config, spell("speculative_config"))
    names = [module.name for module in config.lora_modules]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{spell('lora_modules')}: two adapters have the name {twice}")
    if config.max_num_seqs > MOST_SEQS:
        raise ValueError(f"{spell('max_num_seqs')} must be at most {MOST_SEQS}, got {config.max_num_seqs}")
    if config.max_num_batched_tokens < config.max_num_seqs:
        raise ValueError(
            f"{spell('max_num_batched_tokens')} ({config.max_num_batched_tokens}) must be at least "
            f"{spell('max_num_seqs')} ({config.max_num_seqs}): a step has to hold a token of each running "
            "request; raise it"
        )


def _check_speculation(config: SpeculativeConfig, name: str) -> None:
    if not 1 <= config.num_speculative_tokens <= MOST_DRAFTS:
        raise ValueError(
            f"{name}: num_speculative_tokens must be from 1 to {MOST_DRAFTS}, "
            f"got {config.num_speculative_tokens}"
        )
    shortest, longest = config.lookup
    for key, value in (("prompt_lookup_min", shortest), ("prompt_lookup_max", longest)):
        if not 1 <= value <= MOST_DRAFTS:
            raise ValueError(f"{name}: {key} must be from 1 to {MOST_DRAFTS}, got {value}")
    if shortest > longest:
        raise ValueError(
            f"{name}: prompt_lookup_min ({shortest}) must be at most prompt_lookup_max ({longest})"
        )


def generation_folder(folder: Traversable, source: str) -> Traversable | None:
    """Whose ``generation_config.json`` counts: with "auto" that of the model, with "vllm" none, else that of
    the folder ``source``."""
    if source == "vllm":
        return None
    return folder if source == "auto" else Path(source)


def seconds(milliseconds: float | None) -> float | None:
    """Of a flag that ends in ``_ms``."""
    return None if milliseconds is None else milliseconds / 1000
