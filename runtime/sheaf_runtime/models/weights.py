"""Fill a model's preallocated parameters from a checkpoint: each tensor is copied, and converted where need
be, right into its place."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from sheaf_runtime.models.checkpoint import Checkpoint
from sheaf_runtime.models.config import ModelConfig
from sheaf_runtime.models.errors import UnsupportedModelError

logger = logging.getLogger(__name__)

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BASE = "model."  # what the names of a decoder saved without its head lack
# Checkpoints may carry these; they follow from config.json.
DERIVED = ("rotary_emb.inv_freq", ".weight_shape")


def load_weights(
    checkpoint: Checkpoint, targets: Iterable[tuple[str, Tensor]], *, ignore: Iterable[str] = ()
) -> int:
    """Copy every tensor into its target; returns the bytes filled.

    ``ignore`` names tensors that the checkpoint may hold without a target (the head of a tied model).

    Raises:
        UnsupportedModelError: a tensor is missing, unknown, damaged or of the wrong shape.
    """
    wanted = dict(targets)
    total = sum(t.numel() * t.element_size() for t in wanted.values())
    ignored = set(ignore)
    has_embedding = not checkpoint.names.isdisjoint((EMBEDDING, EMBEDDING.removeprefix(BASE)))
    if HEAD in ignored and HEAD in checkpoint.names and not has_embedding:
        # A tied model may store either of the two.
        wanted[HEAD] = wanted.pop(EMBEDDING)
        ignored.remove(HEAD)
    for name, tensor in checkpoint.tensors():
        if name in ignored or name.endswith(DERIVED):
            continue
        target = wanted.pop(name, None)
        if target is None:
            target = wanted.pop(BASE + name, None)
        if target is None and name.endswith(".bias") and not tensor.any():
            continue  # GPTQ's tools write biases of zeros for models without any
        if target is None:
            raise UnsupportedModelError(
                f"the checkpoint holds {name}, which this architecture has no place for"
            )
        _copy(name, tensor, target)
    if wanted:
        names = sorted(wanted)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UnsupportedModelError(f"the checkpoint lacks the tensors {', '.join(names[:3])}{more}")
    return total


def untie_if_different(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """A head that is stored and differs from the embedding is used, whatever ``config.json`` says."""
    if not config.tie_word_embeddings or not {HEAD, EMBEDDING} <= checkpoint.names:
        return config
    if torch.equal(checkpoint.read(HEAD), checkpoint.read(EMBEDDING)):
        return config
    logger.warning("config.json ties the head to the embedding, but they differ: both are used")
    return replace(config, tie_word_embeddings=False)


def _copy(name: str, source: Tensor, target: Tensor) -> None:
    if source.shape != target.shape:
        raise UnsupportedModelError(
            f"tensor {name} is {list(source.shape)} in the checkpoint, "
            f"but config.json makes it {list(target.shape)}"
        )
    if source.dtype != target.dtype and not (source.is_floating_point() and target.is_floating_point()):
        raise UnsupportedModelError(
            f"tensor {name} is {source.dtype} in the checkpoint, but config.json makes it {target.dtype}"
        )
    target.copy_(source)
