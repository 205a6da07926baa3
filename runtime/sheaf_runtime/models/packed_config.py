"""What ``quantization_config`` says of a checkpoint in GPTQ or AWQ, as a format of ``packed``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.packed import AWQ, GPTQ, Format

GPTQ_BITS = (2, 4, 8)
# How far the zero points of each layout are below what they mean.
GPTQ_LAYOUTS = {"gptq": 1, "gptq_v2": 0}


def read_gptq(config: Mapping[str, Any]) -> Format:
    """Which modules are quantized, and in which order, the files themselves say. Raises
    ``UnsupportedModelError``."""
    bits = config.get("bits")
    if bits not in GPTQ_BITS:
        raise _refusal("bits", bits, f"GPTQ of {', '.join(map(str, GPTQ_BITS))} bits is")
    layout = config.get("checkpoint_format") or config.get("format") or "gptq"
    if layout not in GPTQ_LAYOUTS or config.get("is_marlin_format"):
        raise _refusal("checkpoint_format", layout, f"{' and '.join(GPTQ_LAYOUTS)} are")
    if (width := config.get("pack_dtype") or "int32") != "int32":
        raise _refusal("pack_dtype", width, "int32 is")
    dynamic = config.get("dynamic") or {}
    if others := [pattern for pattern in dynamic if not str(pattern).startswith("-:")]:
        raise _refusal("dynamic", others, "the same bits in all modules are")
    return GPTQ(bits, _group_size(config, "group_size"), GPTQ_LAYOUTS[layout])


def read_awq(config: Mapping[str, Any]) -> Format:
    """As ``read_gptq``."""
    bits = config.get("bits", config.get("w_bit"))
    if bits != 4:
        raise _refusal("bits", bits, "AWQ of 4 bits is")
    if not config.get("zero_point", True):
        raise _refusal("zero_point", False, "AWQ with zero points is")
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise _refusal("version", version, "gemm is")
    return AWQ(_group_size(config, "group_size" if "group_size" in config else "q_group_size"))


def _group_size(config: Mapping[str, Any], name: str) -> int | None:
    size = config.get(name, 128)
    if size == -1:
        return None
    if not isinstance(size, int) or size < 1:
        raise _refusal(name, size, "a number of columns, or -1 for all, is")
    return size


def _refusal(name: str, told: Any, wanted: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"config.json: quantization_config: {name} is {told!r}, and only {wanted} supported; use the "
        "unquantized model, with --quantization int8 on a CPU"
    )
