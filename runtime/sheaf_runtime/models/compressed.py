"""Checkpoints of compressed-tensors: what their ``quantization_config`` asks for, as a scheme.

Read are int8 weights with one scale for each output channel in all linear layers of the decoder but the head:
beside activations in int8, scaled for each token (W8A8, ``int-quantized``), or in floats (W8A16,
``pack-quantized`` or ``int-quantized``). The kernels round activations in both cases, and in groups that are
smaller than a token. All else is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.schemes import INT8_PACKED, INT8_STORED, Scheme

METHOD = "compressed-tensors"
FORMATS: dict[str, Scheme] = {"int-quantized": INT8_STORED, "pack-quantized": INT8_PACKED}
# What each part of a group must say; what it leaves out or has null says nothing.
WEIGHTS = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
ACTIVATIONS = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
HEAD = "lm_head"


def read_compressed(config: Mapping[str, Any]) -> Scheme:
    """Raises ``UnsupportedModelError`` with what it is that cannot be read."""
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise _refusal("config_groups", groups if groups is None else f"{len(groups)} groups", "one group")
    (group,) = groups.values()
    if group.get("targets") != ["Linear"]:
        raise _refusal("targets", group.get("targets"), "['Linear']")
    _check("weights", group.get("weights"), WEIGHTS)
    for name in ("group_size", "block_structure", "actorder"):
        if group["weights"].get(name) not in (None, -1):
            raise _refusal(f"weights.{name}", group["weights"][name], "none")
    if (activations := group.get("input_activations")) is not None:
        _check("input_activations", activations, ACTIVATIONS)
    for name, where in (
        ("output_activations", group),
        ("kv_cache_scheme", config),
        ("sparsity_config", config),
        ("transform_config", config),
    ):
        if where.get(name):
            raise _refusal(name, where[name], "none")
    if config.get("ignore") != [HEAD]:
        raise _refusal("ignore", config.get("ignore"), f"['{HEAD}']")
    form = group.get("format") or config.get("format")
    if form not in FORMATS or (activations is not None and form != "int-quantized"):
        raise _refusal("format", form, " or ".join(FORMATS))
    return FORMATS[form]


def _check(part: str, told: Any, wanted: Mapping[str, Any]) -> None:
    if not isinstance(told, dict):
        raise _refusal(part, told, str(dict(wanted)))
    for name, value in wanted.items():
        if told.get(name, value) != value or (name == "strategy" and name not in told):
            raise _refusal(f"{part}.{name}", told.get(name), repr(value))


def _refusal(name: str, told: Any, wanted: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"config.json: quantization_config: {name} is {told!r}, and of {METHOD} only int8 with {wanted} is "
        "supported; use the unquantized model, with --quantization int8 on a CPU"
    )
