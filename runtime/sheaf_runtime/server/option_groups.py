"""The flags of ``sheaf serve`` by what they are about. Names and meaning are vLLM's where it has them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, get_args

from sheaf_runtime import config
from sheaf_runtime.flags import values
from sheaf_runtime.flags.parser import JSON, Parser
from sheaf_runtime.parsers import REASONING, TOOLS

ENGINE, SERVER = config.EngineConfig(model=""), config.ServerConfig()
ON_OFF = argparse.BooleanOptionalAction
Add = Callable[..., Any]


def add_all(parser: Parser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="Hugging Face model folder, GGUF file, or name on the hub: org/model, org/model:Q4_K_M",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML of flags without their dashes, and of model; the command line beats it",
    )
    for title, fill in GROUPS.items():
        fill(parser.add_argument_group(title).add_argument)


def model(add: Add) -> None:
    add("--served-model-name", nargs="+", default=[], metavar="NAME", help="names to answer to")
    add(
        "--max-model-len",
        type=values.positive,
        metavar="N",
        help="longest prompt and output together (default: the model's)",
    )
    add(
        "--dtype",
        choices=("auto", "float32", "float", "bfloat16", "float16", "half"),
        default=ENGINE.dtype,
        metavar="TYPE",
        help="of weights and KV: auto, float32 (float), bfloat16, float16 (half)",
    )
    add(
        "--model-impl",
        choices=get_args(config.ModelImpl),
        default=ENGINE.model_impl,
        metavar="IMPL",
        help="native: our own decoder; transformers: its code on our pages; auto: ours where there is one",
    )
    add(
        "--hf-overrides",
        type=values.json_object,
        default={},
        metavar=JSON,
        help="keys of config.json that count instead of the file's",
    )
    add(
        "--generation-config",
        default=ENGINE.generation_config,
        metavar="SOURCE",
        help="of defaults and end tokens: auto, the model's own; vllm, none; a folder, that of its file",
    )
    add(
        "--seed",
        type=values.seed,
        metavar="N",
        help="of requests that bring none (default: another one each start)",
    )


def hub(add: Add) -> None:
    add("--revision", type=values.revision, help="branch, tag or commit (default: the hub's)")
    add("--hf-token", metavar="TOKEN", help="for private and gated models; HF_TOKEN is seen by fewer")


def pooling(add: Add) -> None:
    add(
        "--runner",
        choices=get_args(config.Runner),
        default=ENGINE.runner,
        help="text, or embeddings and scores; auto: as the folder tells",
    )
    add(
        "--convert",
        choices=get_args(config.Convert),
        default=ENGINE.convert,
        help="what a model of --runner pooling makes: embeddings, or scores of pairs; auto: as it tells",
    )
    add(
        "--pooler-config",
        type=values.pooler_config,
        metavar=JSON,
        help='how embeddings are made, where the folder is wrong: {"pooling_type": "MEAN"}',
    )


def hardware(add: Add) -> None:
    add("--device", choices=get_args(config.Device), default=ENGINE.device, help="where the model runs")
    add(
        "--attention-backend",
        choices=get_args(config.AttentionBackend),
        default=ENGINE.attention_backend,
        help="the kernels; auto: Triton on a GPU, ours in C on a CPU, torch where neither has them",
    )
    add(
        "--batch-invariant",
        action="store_true",
        help="do not start where an answer could depend on the batch; on the CPU kernels none does",
    )
    add(
        "--quantization",
        default=ENGINE.quantization,
        metavar="NAME",
        help="what linear layers become at load: none (they stay), or int8, for which the CPU has kernels; "
        "gptq, awq and compressed-tensors say what a checkpoint has, which is found without",
    )
    add("--tensor-parallel-size", type=values.positive, default=1, metavar="N", help="not yet: only 1")


def memory(add: Add) -> None:
    add(
        "--gpu-memory-utilization",
        type=values.fraction,
        default=ENGINE.gpu_memory_utilization,
        metavar="FRACTION",
        help="of the card for weights, activations and KV blocks",
    )
    add("--kv-cache-memory", type=values.byte_size, metavar="SIZE", help="KV blocks on CPU, as 2GiB or 500MB")
    add(
        "--num-gpu-blocks-override",
        type=values.positive,
        metavar="N",
        help="number of KV blocks, whatever the memory",
    )
    add(
        "--block-size",
        type=values.positive,
        default=ENGINE.block_size,
        metavar="N",
        help="tokens per KV block",
    )
    add("--kv-cache-dtype", default="auto", metavar="TYPE", help="not yet: only auto, as --dtype")
    add(
        "--enable-prefix-caching",
        action=ON_OFF,
        default=ENGINE.enable_prefix_caching,
        help="equal beginnings of prompts are computed once",
    )


def scheduling(add: Add) -> None:
    add(
        "--max-num-seqs",
        type=values.positive,
        default=ENGINE.max_num_seqs,
        metavar="N",
        help="most requests in a batch",
    )
    add(
        "--max-num-batched-tokens",
        type=values.positive,
        default=ENGINE.max_num_batched_tokens,
        metavar="N",
        help="token budget of a step",
    )
    add(
        "--long-prefill-token-threshold",
        type=values.count,
        default=ENGINE.long_prefill_token_threshold,
        metavar="N",
        help="prompts longer than this leave room in a step for shorter ones (default: half of the budget)",
    )
    add(
        "--max-num-partial-prefills",
        type=values.positive,
        default=ENGINE.max_num_partial_prefills,
        metavar="N",
        help="most long prompts that are computed side by side",
    )
    add(
        "--target-inter-token-ms",
        type=values.milliseconds,
        metavar="MS",
        help="between two tokens of a request: prompts get as much of each step as that leaves "
        "(default: steps with prompts last under three times those without)",
    )
    add(
        "--target-ttft-ms",
        type=values.milliseconds,
        metavar="MS",
        help="until the first token: prompts go by the time that is left to them (default: by arrival)",
    )
    add(
        "--max-waiting-requests",
        type=values.positive,
        default=ENGINE.max_waiting_requests,
        metavar="N",
        help="most requests waiting; more are answered 429",
    )
    add(
        "--max-waiting-tokens",
        type=values.positive,
        metavar="N",
        help="most prompt tokens waiting; more are answered 429 (default: any number)",
    )
    add(
        "--pipeline-depth",
        type=int,
        choices=(0, 1),
        default=ENGINE.pipeline_depth,
        help="steps planned ahead",
    )
    add(
        "--speculative-config",
        type=values.speculative_config,
        metavar=JSON,
        help="propose what followed the same words before, where that saves time: "
        '{"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 5, "prompt_lookup_min": 2}',
    )


def adapters(add: Add) -> None:
    add("--enable-lora", action="store_true", help="serve LoRA adapters beside the model; model chooses one")
    add(
        "--lora-modules",
        nargs="+",
        type=values.lora_module,
        default=[],
        metavar="NAME=FOLDER",
        help='adapters from the start; also as {"name": ..., "path": ..., "base_model_name": ...}',
    )
    add(
        "--max-loras",
        type=values.positive,
        default=ENGINE.max_loras,
        metavar="N",
        help="most different adapters in a batch; requests of others wait for their turn",
    )
    add(
        "--max-cpu-loras",
        type=values.positive,
        metavar="N",
        help="most adapters in memory; others are read again when they are asked for (default: --max-loras)",
    )
    add(
        "--max-lora-rank",
        type=values.positive,
        default=ENGINE.max_lora_rank,
        metavar="N",
        help="highest rank of an adapter",
    )
    add(
        "--allow-runtime-lora-updating",
        action="store_true",
        help="let whoever may call load and unload adapters by this machine's paths",
    )
    add(
        "--adapters-file",
        metavar="FILE",
        help='adapters to have, as {"name": "folder", ...}, read again when the file changes',
    )


def http(add: Add) -> None:
    add("--host", default=SERVER.host, metavar="ADDRESS", help="to listen on")
    add("--port", type=values.port, default=SERVER.port, help="to listen on")
    add("--ssl-certfile", metavar="FILE", help="serve TLS with this PEM certificate (chain)")
    add("--ssl-keyfile", metavar="FILE", help="its key, if the certificate's file does not hold it")
    add("--api-key", nargs="+", default=[], metavar="KEY", help="require one of them as a bearer token")
    add("--api-key-file", metavar="FILE", help="more keys, one a line, read again when the file changes")
    add(
        "--allowed-origins",
        nargs="*",
        default=SERVER.allowed_origins,
        metavar="ORIGIN",
        help="web pages that may call (CORS); the flag without any: none",
    )
    add(
        "--max-body-size",
        type=values.byte_size,
        default=SERVER.max_body_size,
        metavar="SIZE",
        help="of a request, in bytes or as 32MiB; longer ones are answered 413",
    )


def prompts(add: Add) -> None:
    add("--chat-template", metavar="TEMPLATE", help="file or text, in place of the model's own")
    add("--trust-request-chat-template", action="store_true", help="run chat templates that requests bring")
    add(
        "--default-chat-template-kwargs",
        type=values.json_object,
        default={},
        metavar=JSON,
        help="the template's own options, where a request does not set them",
    )
    add(
        "--override-generation-config",
        type=values.json_object,
        default={},
        metavar=JSON,
        help="what counts where a request says nothing, before the model's own: temperature, top_p, top_k, "
        "min_p, repetition_penalty; max_new_tokens bounds every answer",
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


def ends(add: Add) -> None:
    add(
        "--lame-duck",
        type=values.seconds,
        default=SERVER.lame_duck,
        metavar="SECONDS",
        help="after SIGTERM, and after the last new client then, that requests are still served",
    )
    add(
        "--drain-timeout",
        type=values.seconds,
        default=SERVER.drain_timeout,
        metavar="SECONDS",
        help="after SIGTERM when running requests are aborted",
    )
    add(
        "--stall-timeout",
        type=values.some_seconds,
        default=SERVER.stall_timeout,
        metavar="SECONDS",
        help="without a step, with requests in flight, after which the engine counts as dead",
    )


def observability(add: Add) -> None:
    add("--log-level", choices=("debug", "info", "warning", "error"), default=SERVER.log_level, help="least")
    add(
        "--access-log",
        action=ON_OFF,
        default=SERVER.access_log,
        help="a line for each request, without texts",
    )
    add(
        "--otlp-traces-endpoint",
        metavar="URL",
        help="send a trace of each request to this OpenTelemetry collector (needs sheaf[otel])",
    )
    add(
        "--kv-events-config",
        type=values.kv_events_config,
        default=ENGINE.kv_events_config,
        metavar=JSON,
        help="publish what the prefix cache holds over ZMQ, as vLLM does: "
        '{"enable_kv_cache_events": true, "endpoint": "tcp://*:5557", "topic": ""}',
    )


GROUPS = {
    "model": model,
    "model of the hub, kept in HF_HOME": hub,
    "embeddings and scores": pooling,
    "hardware and kernels": hardware,
    "memory and prefix cache": memory,
    "scheduling": scheduling,
    "adapters": adapters,
    "API server": http,
    "prompts, tool calls and reasoning": prompts,
    "ends and failures": ends,
    "observability": observability,
}
