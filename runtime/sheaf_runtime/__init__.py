"""Sheaf's paged-attention inference runtime.

``LLM`` is imported lazily: the API process imports this package and must never import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sheaf_runtime.version import __version__

if TYPE_CHECKING:
    from sheaf_runtime.engine.llm import LLM
    from sheaf_runtime.protocol.sampling import SamplingParams

__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from sheaf_runtime.engine.llm import LLM

        return LLM
    if name == "SamplingParams":
        from sheaf_runtime.protocol.sampling import SamplingParams

        return SamplingParams
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
