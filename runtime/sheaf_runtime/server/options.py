"""Command-line flags of ``sheaf serve``: vLLM's names, to the two configurations."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sheaf_runtime.config import EngineConfig, ServerConfig
from sheaf_runtime.parsers import REASONING, TOOLS
from sheaf_runtime.server.option_values import (
    byte_size,
    count,
    fraction,
    json_object,
    kv_events_config,
    pooler_config,
    port,
    positive,
    revision,
    seconds,
    seed,
    some_seconds,
)


class OptionError(ValueError):
    """A flag's value that cannot be served; one line that says what to change."""


def parse(argv: Sequence[str]) -> tuple[EngineConfig, ServerConfig]:
    """Raises ``OptionError``; ``--help`` exits as argparse does."""
    for item in argv:
        _refuse_blanks(item)
    given = vars(_parser().parse_args(argv))
    _refuse_missing_features(given)
    given["dtype"] = {"float": "float32", "half": "float16"}.get(given["dtype"], given["dtype"])
    for name in ("served_model_name", "api_key", "allowed_origins"):
        given[name] = tuple(given[name])
    engine = EngineConfig(**{name: given[name] for name in EngineConfig.__struct_fields__})
    server = ServerConfig(**{name: given[name] for name in ServerConfig.__struct_fields__})
    if engine.max_num_batched_tokens < engine.max_num_seqs:
        raise OptionError(
            f"--max-num-batched-tokens {engine.max_num_batched_tokens} is below --max-num-seqs "
            f"{engine.max_num_seqs}: a step has to hold a token of each running request; raise it"
        )
    if server.ssl_keyfile and not server.ssl_certfile:
        raise OptionError("--ssl-keyfile needs --ssl-certfile beside it")
    return engine, server


def _refuse_blanks(item: str) -> None:
    """A list in YAML or JSON holds one argument an item; a flag and its value written into one would
    otherwise be taken for a name of something."""
    if item.startswith("-") and item != item.rstrip():
        raise OptionError(f"{item!r} ends with a blank or line break; write {item.rstrip()!r}")
    flag = re.match(r"\s*(--?[a-z][a-z0-9-]*)\s+(.*)", item, re.DOTALL)
    if flag is None:
        return
    name, value = flag[1], flag[2].strip()
    raise OptionError(
        f"{item!r} is one argument with a blank in it; write two arguments, {name!r} and {value!r}, "
        f"or {f'{name}={value}'!r}"
    )


class _Parser(argparse.ArgumentParser):
    """Takes no abbreviations: a flag that is added later must not change what a shorter one means."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> None:  # type: ignore[override]
        raise OptionError(message)


def _parser() -> argparse.ArgumentParser:
    engine, server = EngineConfig(model=""), ServerConfig()
    parser = _Parser(
        prog="sheaf serve",
        description="Serve a model behind an OpenAI-compatible API.",
        epilog="Of a flag that is given twice the last one counts. Flags cannot be abbreviated.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="Hugging Face model folder, GGUF file, or name on the hub: org/model, org/model:Q4_K_M",
    )
    add = parser.add_argument_group("model of the hub, kept in HF_HOME").add_argument
    add("--revision", type=revision, help="branch, tag or commit (default: the hub's)")
    add("--hf-token", metavar="TOKEN", help="for private and gated models; HF_TOKEN is seen by fewer")
    add = parser.add_argument_group("server").add_argument
    add("--host", default=server.host)
    add("--port", type=port, default=server.port)
    add(
        "--served-model-name",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names to answer to",
    )
    add("--ssl-certfile", metavar="FILE", help="serve TLS with this PEM certificate (chain)")
    add("--ssl-keyfile", metavar="FILE", help="its key, if the certificate's file does not hold it")
    add("--api-key", nargs="+", default=[], metavar="KEY", help="require one of them as a bearer token")
    add("--api-key-file", metavar="FILE", help="more keys, one a line, read again when the file changes")
    add(
        "--allowed-origins",
        nargs="*",
        default=server.allowed_origins,
        metavar="ORIGIN",
        help="web pages that may call (CORS); the flag without any: none",
    )
    add("--max-body-size", type=byte_size, default=server.max_body_size, metavar="SIZE")
    add("--access-log", action=argparse.BooleanOptionalAction, default=server.access_log)
    add("--chat-template", help="file or text, in place of the model's own")
    add(
        "--trust-request-chat-template",
        action="store_true",
        help="run chat templates that requests bring",
    )
    add(
        "--tool-call-parser",
        choices=sorted(TOOLS),
        metavar="NAME",
        help=f"how the model writes tool calls: {', '.join(sorted(TOOLS))} (default: as its template tells)",
    )
    add(
        "--enable-auto-tool-choice",
        action="store_true",
        help="do not start where neither the template nor --tool-call-parser tells how calls are written",
    )
    add(
        "--exclude-tools-when-tool-choice-none",
        action="store_true",
        help="leave the tools out of the prompt where a request forbids to call them",
    )
    add(
        "--reasoning-parser",
        choices=sorted(REASONING),
        metavar="NAME",
        help=f"tell the model's thoughts from its answer: {', '.join(sorted(REASONING))}",
    )
    add(
        "--default-chat-template-kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="the template's own options, where a request does not set them",
    )
    add(
        "--lame-duck",
        type=seconds,
        default=server.lame_duck,
        help="seconds after SIGTERM that late requests are still served",
    )
    add(
        "--drain-timeout",
        type=seconds,
        default=server.drain_timeout,
        help="seconds after SIGTERM when running requests are aborted",
    )
    add(
        "--stall-timeout",
        type=some_seconds,
        default=server.stall_timeout,
        help="seconds without a step, with requests in flight, after which the engine counts as dead",
    )
    add("--log-level", choices=("debug", "info", "warning", "error"), default=server.log_level)
    add = parser.add_argument_group("engine").add_argument
    add("--max-model-len", type=positive, help="longest prompt and output together (default: the model's)")
    add("--dtype", choices=("auto", "float32", "float", "bfloat16", "float16", "half"), default=engine.dtype)
    add("--device", choices=("auto", "cpu", "cuda"), default=engine.device)
    add("--attention-backend", choices=("auto", "torch", "triton"), default=engine.attention_backend)
    add(
        "--model-impl",
        choices=("auto", "native", "transformers"),
        default=engine.model_impl,
        help="our own decoder, or transformers' code on our pages (auto: our own where there is one)",
    )
    add(
        "--runner",
        choices=("auto", "generate", "pooling"),
        default=engine.runner,
        help="text, or embeddings and scores (auto: as the folder tells)",
    )
    add(
        "--convert",
        choices=("auto", "none", "embed", "classify"),
        default=engine.convert,
        help="what a model of --runner pooling makes: embeddings, or scores of pairs (auto: as it tells)",
    )
    add(
        "--pooler-config",
        type=pooler_config,
        metavar="JSON",
        help='how embeddings are made, where the folder is wrong: {"pooling_type": "MEAN"}',
    )
    add(
        "--hf-overrides",
        type=json_object,
        default={},
        metavar="JSON",
        help="keys of config.json that count instead of the file's",
    )
    add("--block-size", type=positive, default=engine.block_size, help="tokens per KV block")
    add(
        "--gpu-memory-utilization",
        type=fraction,
        default=engine.gpu_memory_utilization,
        help="fraction of the card for weights, activations and KV blocks",
    )
    add("--kv-cache-memory", type=byte_size, metavar="SIZE", help="KV blocks on CPU, as 2GiB or 500MB")
    add("--num-gpu-blocks-override", type=positive, help="number of KV blocks, whatever the memory")
    add("--max-num-seqs", type=positive, default=engine.max_num_seqs, help="most requests in a batch")
    add(
        "--max-num-batched-tokens",
        type=positive,
        default=engine.max_num_batched_tokens,
        help="token budget of a step",
    )
    add(
        "--long-prefill-token-threshold",
        type=count,
        default=engine.long_prefill_token_threshold,
        metavar="N",
        help="prompts longer than this leave room in a step for shorter ones (default: half of the budget)",
    )
    add(
        "--max-num-partial-prefills",
        type=positive,
        default=engine.max_num_partial_prefills,
        metavar="N",
        help="most long prompts that are computed side by side",
    )
    add(
        "--max-num-queued",
        type=positive,
        default=engine.max_num_queued,
        help="most requests waiting; more are answered 429",
    )
    add(
        "--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=engine.enable_prefix_caching
    )
    add(
        "--kv-events-config",
        type=kv_events_config,
        default=engine.kv_events_config,
        metavar="JSON",
        help="publish what the prefix cache holds over ZMQ, as vLLM does: "
        '{"enable_kv_cache_events": true, "endpoint": "tcp://*:5557", "topic": ""}',
    )
    add(
        "--pipeline-depth",
        type=int,
        choices=(0, 1),
        default=engine.pipeline_depth,
        help="steps planned ahead",
    )
    add("--seed", type=seed, help="of requests that bring none (default: another one each start)")
    add("--quantization", default="none")
    add("--kv-cache-dtype", default="auto")
    add("--tensor-parallel-size", type=positive, default=1)
    return parser


def _refuse_missing_features(given: Mapping[str, Any]) -> None:
    for name, only, instead in (
        ("quantization", ("none", "None"), "leave the flag out"),
        ("kv_cache_dtype", ("auto",), "use auto"),
        ("tensor_parallel_size", (1,), "use 1"),
    ):
        if given[name] not in only:
            raise OptionError(f"--{name.replace('_', '-')} {given[name]} is not supported yet; {instead}")
