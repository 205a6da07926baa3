"""``--hf-overrides`` over ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sheaf_runtime.models.errors import UnsupportedModelError

ROPE = ("rope_theta", "rope_scaling", "partial_rotary_factor")  # as they were before transformers 5


def overridden(raw: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides replace whole keys. The older words for rotary embedding go into ``rope_parameters`` where a
    file has that, which else would beat them; ``rope_scaling`` keeps its ``rope_theta``."""
    merged = {**raw, **overrides}
    older = {name: overrides[name] for name in ROPE if name in overrides}
    parameters = raw.get("rope_parameters")
    if not older or "rope_parameters" in overrides or not isinstance(parameters, dict):
        return merged
    if any(isinstance(value, dict) for value in parameters.values()):
        raise UnsupportedModelError(
            f"--hf-overrides: {', '.join(older)}: the model has rope_parameters for each type of layer; "
            "override rope_parameters"
        )
    if "rope_scaling" in older:
        parameters = {"rope_theta": parameters.get("rope_theta")} | (older.pop("rope_scaling") or {})
    return merged | {"rope_parameters": parameters | older}
