"""Reads a folder as sentence-transformers writes it (``modules.json`` and what it names), and what vLLM's
flags say beside it. Whatever would change the numbers and is not there is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.resources.abc import Traversable
from typing import Any

import orjson

from sheaf_runtime.config import Convert, PoolerConfig, Runner
from sheaf_runtime.pooling.score import score_head
from sheaf_runtime.pooling.spec import Mode, PoolingError, PoolingSpec
from sheaf_runtime.text.tokenizer import TokenizerError, read_json

MODES: Mapping[str, Mode] = {"lasttoken": "last", "mean": "mean"}
LEGACY_MODES = {  # flags of older 1_Pooling/config.json
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
SCORES = "ForSequenceClassification"


def read_pooling(
    folder: Traversable, raw: Mapping[str, Any], runner: Runner, convert: Convert, pooler: PoolerConfig | None
) -> PoolingSpec | None:
    """``raw`` is ``config.json``. None: the model generates. Raises ``PoolingError``."""
    try:
        modules = _modules(folder)
        task = _task(raw, modules, runner, convert)
        if task is None:
            if pooler is not None:
                raise PoolingError("--pooler-config: this model generates text; add --runner pooling")
            return None
        if raw.get("is_causal") is False or raw.get("use_bidirectional_attention"):
            raise PoolingError("config.json: the model's attention is not causal, which is not supported")
        spec = _common(folder, raw, modules)
        if task == "classify":
            return replace(
                spec,
                score=score_head(folder, raw, modules.get("LogitScore")),
                qwen3_template=bool(raw.get("is_original_qwen3_reranker")),
            )
        if "LogitScore" in modules:
            raise PoolingError("modules.json names LogitScore: this model scores; use --convert classify")
        return _with_flags(_embedding(folder, spec, modules), pooler)
    except TokenizerError as error:
        raise PoolingError(str(error)) from error


def causal_architectures(names: Any) -> list[Any]:
    """The decoder that a model for pooling is made of: ``Qwen3Model`` is ``Qwen3ForCausalLM`` without its
    head."""
    found = []
    for name in names if isinstance(names, list) else []:
        for suffix in (SCORES, "TextModel", "Model"):
            if isinstance(name, str) and name.endswith(suffix) and not name.endswith(GENERATES):
                name = name.removesuffix(suffix) + "ForCausalLM"
        found.append(name)
    return found


def _task(
    raw: Mapping[str, Any], modules: Mapping[str, Traversable], runner: Runner, convert: Convert
) -> Convert | None:
    if runner == "generate":
        if convert not in ("auto", "none"):
            raise PoolingError(f"--convert {convert} is for --runner pooling")
        return None
    if convert in ("embed", "classify"):
        return convert
    names = [name for name in raw.get("architectures") or [] if isinstance(name, str)]
    if "LogitScore" in modules or any(name.endswith(SCORES) for name in names):
        return "classify"
    headless = any(name.endswith("Model") and not name.endswith(GENERATES) for name in names)
    return "embed" if runner == "pooling" or "Pooling" in modules or headless else None


def _modules(folder: Traversable) -> dict[str, Traversable]:
    """Kind of module to its folder; kinds are the last part of the class's name, which has moved often."""
    path = folder / "modules.json"
    try:
        listed = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise PoolingError(f"{path} cannot be read: {error}") from error
    try:
        return {item["type"].rsplit(".", 1)[-1]: folder / item["path"] for item in listed}
    except (TypeError, KeyError, AttributeError) as error:
        raise PoolingError(f"{path} must list modules with a type and a path") from error


def _common(folder: Traversable, raw: Mapping[str, Any], modules: Mapping[str, Traversable]) -> PoolingSpec:
    unknown = modules.keys() - {"Transformer", "Pooling", "Normalize", "LogitScore"}
    if unknown:
        raise PoolingError(f"modules.json: the module {min(unknown)} is not supported")
    if modules.get("Transformer", folder) != folder:
        raise PoolingError("modules.json: the Transformer must be in the folder itself, with path ''")
    about = read_json(folder / "config_sentence_transformers.json")
    prompts = {str(k): str(v) for k, v in (about.get("prompts") or {}).items() if v is not None}
    default = about.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise PoolingError(f"config_sentence_transformers.json: there is no prompt {default!r}")
    limits = read_json(folder / "sentence_bert_config.json")
    length = limits.get("max_seq_length")
    dimensions = raw.get("matryoshka_dimensions")
    return PoolingSpec(
        prompts=prompts,
        default_prompt=default,
        max_length=length if type(length) is int and length > 0 else None,
        lower=bool(limits.get("do_lower_case")),
        matryoshka=tuple(dimensions) if dimensions else bool(raw.get("is_matryoshka")),
    )


def _embedding(folder: Traversable, spec: PoolingSpec, modules: Mapping[str, Traversable]) -> PoolingSpec:
    if "Pooling" not in modules:
        return spec
    config = read_json(modules["Pooling"] / "config.json")
    asked = config.get("pooling_mode") or [mode for key, mode in LEGACY_MODES.items() if config.get(key)]
    modes = [asked] if isinstance(asked, str) else list(asked) or ["mean"]
    where = modules["Pooling"].name
    if len(modes) != 1 or modes[0] not in MODES:
        raise PoolingError(f"{where}/config.json: pooling by {', '.join(modes)} is not supported")
    mode = MODES[modes[0]]
    if config.get("include_prompt") is False and mode == "mean":
        raise PoolingError(f"{where}/config.json: include_prompt false is not supported")
    return replace(spec, mode=mode, normalize="Normalize" in modules)


def _with_flags(spec: PoolingSpec, pooler: PoolerConfig | None) -> PoolingSpec:
    if pooler is None:
        return spec
    kind = pooler.pooling_type or pooler.seq_pooling_type
    mode: Mode = spec.mode if kind is None else "mean" if kind == "MEAN" else "last"
    normalize = spec.normalize if pooler.use_activation is None else pooler.use_activation
    return replace(spec, mode=mode, normalize=normalize, dimensions=pooler.dimensions)
