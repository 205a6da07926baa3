"""Checkpoints of compressed-tensors: what their ``quantization_config`` asks for, as a scheme.

Read as they are: int8 weights with one scale for each output channel in all linear layers of the decoder but
the head, beside activations in int8, scaled for each token (W8A8, ``int-quantized``), or in floats (W8A16,
``pack-quantized`` or ``int-quantized``). The kernels round activations in both cases, and in groups that are
smaller than a token. Other packed integers of 4 or 8 bits (W4A16: by groups or channels, with zero points or
without, in whatever order, of whichever layers) are unpacked. All else is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.packed import PackQuantized
from sheaf_runtime.models.schemes import INT8_PACKED, INT8_STORED, Scheme

METHOD = "compressed-tensors"
FORMATS: dict[str, Scheme] = {"int-quantized": INT8_STORED, "pack-quantized": INT8_PACKED}
# What each part of a group must say; what it leaves out or has null says nothing.
WEIGHTS = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True, "dynamic": False}
ACTIVATIONS = {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": True, "dynamic": True}
HEAD = "lm_head"
PACKED_BITS = (4, 8)


def read_compressed(config: Mapping[str, Any]) -> Scheme | PackQuantized:
    """Raises ``UnsupportedModelError`` with what it is that cannot be read."""
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise _refusal("config_groups", groups if groups is None else f"{len(groups)} groups", "one group")
    (group,) = groups.values()
    _check_whole(group, config)
    if (form := _packed(group, config)) is not None:
        return form
    if group.get("targets") != ["Linear"]:
        raise _refusal("targets", group.get("targets"), "['Linear']")
    _check("weights", group.get("weights"), WEIGHTS)
    for name in ("group_size", "block_structure", "actorder"):
        if group["weights"].get(name) not in (None, -1):
            raise _refusal(f"weights.{name}", group["weights"][name], "none")
    if (activations := group.get("input_activations")) is not None:
        _check("input_activations", activations, ACTIVATIONS)
    if config.get("ignore") != [HEAD]:
        raise _refusal("ignore", config.get("ignore"), f"['{HEAD}']")
    name = _format(group, config)
    if name not in FORMATS or (activations is not None and name != "int-quantized"):
        raise _refusal("format", name, " or ".join(FORMATS))
    return FORMATS[name]


def _check_whole(group: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    for name, where in (
        ("output_activations", group),
        ("kv_cache_scheme", config),
        ("sparsity_config", config),
        ("transform_config", config),
    ):
        if where.get(name):
            raise _refusal(name, where[name], "none")


def _packed(group: Mapping[str, Any], config: Mapping[str, Any]) -> PackQuantized | None:
    """What is packed and not W8A16 by channels of everything but the head; None: it is something else."""
    weights = group.get("weights")
    if _format(group, config) != "pack-quantized" or group.get("input_activations") is not None:
        return None
    if not isinstance(weights, dict) or weights.get("type", "int") != "int" or weights.get("dynamic"):
        return None
    bits, size, strategy = weights.get("num_bits"), weights.get("group_size"), weights.get("strategy")
    plain = strategy == "channel" and weights.get("symmetric", True) and not weights.get("actorder")
    if bits == 8 and plain and config.get("ignore") == [HEAD]:
        return None
    if bits not in PACKED_BITS or strategy not in ("channel", "group"):
        return None
    if strategy == "channel":
        size = None
    elif not isinstance(size, int) or size < 1:
        raise _refusal("weights.group_size", size, "a number of columns")
    return PackQuantized(bits, size, bool(weights.get("symmetric", True)))


def _format(group: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    return group.get("format") or config.get("format")


def _check(part: str, told: Any, wanted: Mapping[str, Any]) -> None:
    if not isinstance(told, dict):
        raise _refusal(part, told, str(dict(wanted)))
    for name, value in wanted.items():
        if told.get(name, value) != value or (name == "strategy" and name not in told):
            raise _refusal(f"{part}.{name}", told.get(name), repr(value))


def _refusal(name: str, told: Any, wanted: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"config.json: quantization_config: {name} is {told!r}, and of {METHOD} only {wanted} is "
        "supported beside it; use the unquantized model, with --quantization int8 on a CPU"
    )
