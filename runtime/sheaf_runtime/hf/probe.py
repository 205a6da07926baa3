"""What a model asks of attention, found out by running it once on a few tokens.

Configurations name the same thing in many ways; what arrives at the attention interface says it in one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sheaf_runtime.hf.interface import AttentionHook
from sheaf_runtime.models.errors import UnsupportedModelError


@dataclass(frozen=True)
class AttentionCall:
    """One layer's call. ``head_dims`` are those of queries, keys and values."""

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dims: tuple[int, int, int]
    scale: float
    window: int | None
    softcap: float | None
    sinks: bool


def probe(model: Any, hook: AttentionHook) -> list[AttentionCall]:
    """The calls of one forward, in the order of layers. Raises ``UnsupportedModelError``."""
    calls: list[AttentionCall] = []

    def record(module: Any, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        calls.append(_call(module, q, k, v, options))
        return torch.zeros(1, q.shape[2], q.shape[1], v.shape[3], dtype=q.dtype, device=q.device)

    tokens = torch.zeros(1, 4, dtype=torch.int64, device=model.device)
    with torch.inference_mode(), hook.answered_by(record):
        model.base_model(input_ids=tokens, position_ids=torch.arange(4)[None].to(tokens), use_cache=False)
    return sorted(calls, key=lambda call: call.layer)


def _call(module: Any, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> AttentionCall:
    layer = getattr(module, "layer_idx", None)
    if type(layer) is not int:
        raise UnsupportedModelError("its attention does not say which layer it belongs to")
    if not getattr(module, "is_causal", True) or options.get("is_causal") is False:
        raise UnsupportedModelError("its attention is not causal")
    if options.get("position_bias") is not None:
        raise UnsupportedModelError("its attention has a position bias")
    sinks = options.get("s_aux") is not None
    scale = options.get("scaling")
    return AttentionCall(
        layer=layer,
        num_heads=q.shape[1],
        num_kv_heads=k.shape[1],
        head_dims=(q.shape[3], k.shape[3], v.shape[3]),
        scale=float(q.shape[3] ** -0.5 if scale is None else scale),
        window=options.get("sliding_window"),
        softcap=options.get("softcap"),
        sinks=sinks,
    )


def check(model: Any, hook: AttentionHook, calls: list[AttentionCall]) -> None:
    """Run two short sequences side by side as we understand their attention, and each alone as transformers
    does. Raises ``UnsupportedModelError`` if the results differ: tokens see each other in some other way."""
    lengths = (5, 9)
    vocab = model.get_input_embeddings().num_embeddings
    tokens = (torch.arange(sum(lengths), device=model.device) * 7919 + 1) % vocab
    position = torch.cat([torch.arange(n, device=model.device) for n in lengths])
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(model.device)
    visible = (owner[:, None] == owner) & (position[:, None] >= position)
    with torch.inference_mode():
        with hook.answered_by(_Understood(calls, visible, position[:, None] - position)):
            got = model.base_model(input_ids=tokens[None], position_ids=position[None], use_cache=False)
        model.set_attn_implementation("eager")
        try:
            alone = [
                model.base_model(input_ids=tokens[owner == i][None], use_cache=False).last_hidden_state
                for i in range(len(lengths))
            ]
        finally:
            model.set_attn_implementation(hook.name)
    want = torch.cat(alone, dim=1).float()
    error = (got.last_hidden_state.float() - want).norm() / want.norm()
    if not error < 4 * torch.finfo(model.dtype).eps ** 0.5:
        raise UnsupportedModelError("its tokens see each other otherwise than by causal attention")


class _Understood:
    """Attention as ``AttentionCall`` describes it, written out."""

    def __init__(self, calls: list[AttentionCall], visible_TT: Tensor, distance_TT: Tensor) -> None:
        self._calls, self._visible, self._distance = calls, visible_TT, distance_TT

    def __call__(self, module: Any, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        call = self._calls[module.layer_idx]
        group = call.num_heads // call.num_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        scores = q.float() @ k.float().transpose(2, 3) * call.scale
        if call.softcap is not None:
            scores = call.softcap * torch.tanh(scores / call.softcap)
        visible = self._visible if call.window is None else self._visible & (self._distance < call.window)
        scores = scores.masked_fill(~visible, -torch.inf)
        if call.sinks:
            sinks = options["s_aux"].float().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat((scores, sinks), dim=-1)
        weights = scores.softmax(-1)[..., : q.shape[2]].to(v.dtype)
        attended: Tensor = weights @ v
        return attended.transpose(1, 2)
