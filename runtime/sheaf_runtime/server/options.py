"""Command-line flags of ``sheaf serve``: vLLM's names, to the two configurations."""

from __future__ import annotations

import argparse
import re

from sheaf_runtime.config import EngineConfig, ServerConfig

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{unit}i": 1024**power for power, unit in enumerate(("k", "m", "g", "t"), start=1)}


class OptionError(ValueError):
    """A flag's value that cannot be served; one line that says what to change."""


def parse(argv: list[str]) -> tuple[EngineConfig, ServerConfig]:
    """Raises ``OptionError``; ``--help`` exits as argparse does."""
    given = _parser().parse_args(argv)
    _refuse_missing_features(given)
    engine = EngineConfig(
        model=given.model,
        dtype={"float": "float32", "half": "float16"}.get(given.dtype, given.dtype),
        device=given.device,
        attention_backend=given.attention_backend,
        max_model_len=given.max_model_len,
        block_size=given.block_size,
        gpu_memory_utilization=given.gpu_memory_utilization,
        kv_cache_memory=given.kv_cache_memory,
        num_gpu_blocks_override=given.num_gpu_blocks_override,
        max_num_seqs=given.max_num_seqs,
        max_num_batched_tokens=given.max_num_batched_tokens,
        max_num_queued=given.max_num_queued,
        enable_prefix_caching=given.enable_prefix_caching,
        pipeline_depth=given.pipeline_depth,
        seed=given.seed,
    )
    server = ServerConfig(
        host=given.host,
        port=given.port,
        served_model_name=tuple(given.served_model_name),
        api_key=given.api_key,
        chat_template=given.chat_template,
        lame_duck=given.lame_duck,
        drain_timeout=given.drain_timeout,
        stall_timeout=given.stall_timeout,
        log_level=given.log_level,
    )
    return engine, server


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise OptionError(message)


def _parser() -> argparse.ArgumentParser:
    engine, server = EngineConfig(model=""), ServerConfig()
    parser = _Parser(prog="sheaf serve", description="Serve a model folder behind an OpenAI-compatible API.")
    parser.add_argument("model", metavar="MODEL", help="Hugging Face model folder")
    add = parser.add_argument_group("server").add_argument
    add("--host", default=server.host)
    add("--port", type=_port, default=server.port)
    add(
        "--served-model-name",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names to answer to",
    )
    add("--api-key", help="require it as a bearer token on /v1")
    add("--chat-template", help="file or text, in place of the model's own")
    add(
        "--lame-duck",
        type=_seconds,
        default=server.lame_duck,
        help="seconds after SIGTERM that late requests are still served",
    )
    add(
        "--drain-timeout",
        type=_seconds,
        default=server.drain_timeout,
        help="seconds after SIGTERM when running requests are aborted",
    )
    add(
        "--stall-timeout",
        type=_some_seconds,
        default=server.stall_timeout,
        help="seconds without a step, with requests in flight, after which the engine counts as dead",
    )
    add("--log-level", choices=("debug", "info", "warning", "error"), default=server.log_level)
    add = parser.add_argument_group("engine").add_argument
    add("--max-model-len", type=_positive, help="longest prompt and output together (default: the model's)")
    add("--dtype", choices=("auto", "float32", "float", "bfloat16", "float16", "half"), default=engine.dtype)
    add("--device", choices=("auto", "cpu", "cuda"), default=engine.device)
    add("--attention-backend", choices=("auto", "torch", "triton"), default=engine.attention_backend)
    add("--block-size", type=_positive, default=engine.block_size, help="tokens per KV block")
    add(
        "--gpu-memory-utilization",
        type=_fraction,
        default=engine.gpu_memory_utilization,
        help="fraction of the card for weights, activations and KV blocks",
    )
    add("--kv-cache-memory", type=_bytes, metavar="SIZE", help="KV blocks on CPU, as 2GiB or 500MB")
    add("--num-gpu-blocks-override", type=_positive, help="number of KV blocks, whatever the memory")
    add("--max-num-seqs", type=_positive, default=engine.max_num_seqs, help="most requests in a batch")
    add(
        "--max-num-batched-tokens",
        type=_positive,
        default=engine.max_num_batched_tokens,
        help="token budget of a step",
    )
    add(
        "--max-num-queued",
        type=_positive,
        default=engine.max_num_queued,
        help="most requests waiting; more are answered 429",
    )
    add(
        "--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=engine.enable_prefix_caching
    )
    add(
        "--pipeline-depth",
        type=int,
        choices=(0, 1),
        default=engine.pipeline_depth,
        help="steps planned ahead",
    )
    add("--seed", type=int, default=engine.seed)
    add("--quantization", default="none")
    add("--kv-cache-dtype", default="auto")
    add("--tensor-parallel-size", type=_positive, default=1)
    return parser


def _refuse_missing_features(given: argparse.Namespace) -> None:
    if given.quantization not in ("none", "None"):
        raise OptionError(f"--quantization {given.quantization} is not supported yet; leave the flag out")
    if given.kv_cache_dtype != "auto":
        raise OptionError(f"--kv-cache-dtype {given.kv_cache_dtype} is not supported yet; use auto")
    if given.tensor_parallel_size != 1:
        raise OptionError(f"--tensor-parallel-size {given.tensor_parallel_size} is not supported yet; use 1")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?i?)b?", text.strip().lower())
    size = int(float(match[1]) * UNITS.get(match[2], 0)) if match else 0
    if not size:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write bytes, or 2GiB, 500MB")
    return size


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} must be a port from 1 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds, 0 or more")
    return value


def _some_seconds(text: str) -> float:
    if not (value := _seconds(text)):
        raise argparse.ArgumentTypeError("0 must be a number of seconds above 0")
    return value


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be above 0 and at most 1")
    return value
