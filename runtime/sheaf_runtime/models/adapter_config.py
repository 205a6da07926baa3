"""peft's ``adapter_config.json``: which modules a LoRA adapter changes, and how strongly. Imports no torch.

Keys that would change the answer in a way that is not known here are refused by name, never ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sheaf_runtime.models.errors import AdapterError, AdapterMissingError

T = TypeVar("T")
CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"
_HANDLED = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "rank_pattern",
        "alpha_pattern",
        "bias",
        "init_lora_weights",
    }
)
# About training, about where it came from, or about what is refused by its tensors.
_HARMLESS = frozenset(
    {
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "lora_dropout",
        "fan_in_fan_out",
        "layers_pattern",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "lora_ga_config",
        "qalora_group_size",
        "runtime_config",
        "ensure_weight_tying",
    }
)
# The others begin with a change of the model's own weights, which the adapter's file does not hold.
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_INSTEAD = "merge the adapter into the model, or train it without"


@dataclass(frozen=True)
class AdapterConfig:
    """``targets`` and ``excluded`` are the ends of modules' names or, as text, a regular expression that a
    whole name matches. ``layers`` None: all of them. Patterns say for modules what differs."""

    rank: int
    alpha: float
    rank_stabilized: bool
    targets: frozenset[str] | str
    excluded: frozenset[str] | str
    layers: frozenset[int] | None
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def names(self, module: str) -> bool:
        """Whether it changes the module of this name, ``model.layers.0.self_attn.q_proj``."""
        if _selects(self.excluded, module):
            return False
        if self.layers is not None and _layer(module) not in self.layers:
            return False
        return self.targets == ALL_LINEAR or _selects(self.targets, module)

    def rank_of(self, module: str) -> int:
        return _patterned(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        rank = self.rank_of(module)
        alpha = _patterned(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_adapter_config(folder: Path, num_layers: int) -> AdapterConfig:
    """Raises ``AdapterError``; messages name the file's key."""
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AdapterMissingError(f"No adapter found: {folder} is no folder with {CONFIG}") from error
    except (OSError, ValueError) as error:
        raise AdapterError(f"{CONFIG} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise AdapterError(f"{CONFIG} is not a JSON object")
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise AdapterError(f"{CONFIG}: peft_type is {kind}; only LORA is supported")
    for key, value in raw.items():
        if value and key not in _HANDLED and key not in _HARMLESS:
            raise AdapterError(f"{CONFIG}: {key} is not supported; {_INSTEAD}")
    if raw.get("bias", "none") != "none":
        raise AdapterError(f"{CONFIG}: bias is {raw['bias']}; only none is supported, {_INSTEAD}")
    start = raw.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise AdapterError(
            f"{CONFIG}: init_lora_weights is {start}, which changes the model's own weights; save the "
            "adapter with path_initial_model_for_weight_conversion, or merge it into the model"
        )
    return AdapterConfig(
        rank=_rank("r", raw.get("r", 8)),
        alpha=_number("lora_alpha", raw.get("lora_alpha", 8)),
        rank_stabilized=raw.get("use_rslora") is True,
        targets=_modules("target_modules", raw.get("target_modules")),
        excluded=_modules("exclude_modules", raw.get("exclude_modules") or []),
        layers=_layers(raw.get("layers_to_transform"), num_layers),
        rank_pattern={k: _rank("rank_pattern", v) for k, v in _pattern("rank_pattern", raw).items()},
        alpha_pattern={k: _number("alpha_pattern", v) for k, v in _pattern("alpha_pattern", raw).items()},
    )


def _selects(modules: frozenset[str] | str, name: str) -> bool:
    if isinstance(modules, str):
        return re.fullmatch(modules, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in modules)


def _patterned(pattern: Mapping[str, T], module: str, otherwise: T) -> T:
    """The value of the first key that matches the end of the name, from a dot on."""
    return next((v for key, v in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)


def _layer(module: str) -> int | None:
    number = re.search(r"\.layers\.(\d+)\.", module)
    return int(number[1]) if number else None


def _modules(key: str, value: Any) -> frozenset[str] | str:
    if isinstance(value, str):
        if value != ALL_LINEAR:
            _check_pattern(key, value)
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ALL_LINEAR if value == [ALL_LINEAR] else frozenset(value)
    raise AdapterError(f"{CONFIG}: {key} must be a list of modules, or a regular expression; got {value}")


def _check_pattern(key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise AdapterError(f"{CONFIG}: {key}: {pattern!r} is no regular expression: {error}") from error


def _pattern(key: str, raw: Mapping[str, Any]) -> Mapping[str, Any]:
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise AdapterError(f"{CONFIG}: {key} must be an object of modules, got {value}")
    for name in value:
        _check_pattern(key, name)
    return value


def _rank(key: str, value: Any) -> int:
    if type(value) is not int or value < 1:
        raise AdapterError(f"{CONFIG}: {key} must be a whole number above 0, got {value}")
    return value


def _number(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise AdapterError(f"{CONFIG}: {key} must be a number, got {value}")
    return float(value)


def _layers(value: Any, num_layers: int) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    numbers: Collection[Any] = [value] if type(value) is int else value
    if not isinstance(numbers, list) or any(type(n) is not int for n in numbers):
        raise AdapterError(f"{CONFIG}: layers_to_transform must be numbers of layers, got {value}")
    if outside := [n for n in numbers if not 0 <= n < num_layers]:
        raise AdapterError(
            f"{CONFIG}: layers_to_transform names layer {outside[0]}; the model has layers 0 to "
            f"{num_layers - 1}"
        )
    return frozenset(numbers)
