"""The command line of ``sheaf serve``, to the two configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from sheaf_runtime.config import EngineConfig, Quantization, ServerConfig, check_config
from sheaf_runtime.flags.config_file import read_with_config
from sheaf_runtime.flags.parser import OptionError, Parser
from sheaf_runtime.server.adapter_names import name_problem
from sheaf_runtime.server.model_folder import ModelFolderError, SamplingDefaults
from sheaf_runtime.server.option_groups import add_all
from sheaf_runtime.server.vllm_flags import ABSENT

# What vLLM's users say for the same: its names tell by which kernels.
ALIASES = {"None": "none", "gptq_marlin": "gptq", "awq_marlin": "awq"}


def parser() -> Parser:
    made = Parser(
        prog="sheaf serve",
        description="Serve a model behind an OpenAI-compatible API.",
        epilog="Of a flag that is given twice the last one counts. Flags cannot be abbreviated. "
        "Of JSON each key can be given alone: --hf-overrides.rope_scaling.factor 4.0; "
        "with + at its end elements of a list.",
        absent=ABSENT,
    )
    add_all(made)
    return made


def parse(argv: Sequence[str]) -> tuple[EngineConfig, ServerConfig]:
    """Raises ``OptionError``; ``--help`` exits as argparse does."""
    given = read_with_config(parser(), argv)
    given["quantization"] = ALIASES.get(given["quantization"], given["quantization"])
    _refuse_missing_features(given)
    given["dtype"] = {"float": "float32", "half": "float16"}.get(given["dtype"], given["dtype"])
    for name in ("served_model_name", "api_key", "allowed_origins", "lora_modules"):
        given[name] = tuple(given[name])
    engine = EngineConfig(**{name: given[name] for name in EngineConfig.__struct_fields__})
    server = ServerConfig(**{name: given[name] for name in ServerConfig.__struct_fields__})
    try:
        check_config(engine, _flag)
    except ValueError as error:
        raise OptionError(str(error)) from error
    _check_adapters(engine, server)
    _check_generation_config(server.override_generation_config)
    if server.ssl_keyfile and not server.ssl_certfile:
        raise OptionError("--ssl-keyfile needs --ssl-certfile beside it")
    return engine, server


def _check_adapters(engine: EngineConfig, server: ServerConfig) -> None:
    if server.allow_runtime_lora_updating and not engine.enable_lora:
        raise OptionError("--allow-runtime-lora-updating needs --enable-lora beside it")
    if server.adapters_file is not None and not engine.enable_lora:
        raise OptionError("--adapters-file needs --enable-lora beside it")
    for module in engine.lora_modules:
        if problem := name_problem(module.name, server.served_model_name or (engine.model,)):
            raise OptionError(f"--lora-modules: {problem}")


def _check_generation_config(overrides: Mapping[str, Any]) -> None:
    names = SamplingDefaults.__dataclass_fields__
    if unknown := [name for name in overrides if name not in names]:
        raise OptionError(f"--override-generation-config: {unknown[0]} is none of {', '.join(names)}")
    try:
        SamplingDefaults.known(overrides, "--override-generation-config")
    except ModelFolderError as error:
        raise OptionError(str(error)) from error


def _refuse_missing_features(given: Mapping[str, Any]) -> None:
    for name, only, instead in (
        ("quantization", get_args(Quantization), "use int8, or leave the flag out"),
        ("kv_cache_dtype", ("auto",), "use auto"),
        ("tensor_parallel_size", (1,), "use 1"),
    ):
        if given[name] not in only:
            raise OptionError(f"{_flag(name)} {given[name]} is not supported yet; {instead}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
