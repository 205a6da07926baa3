"""What follows attention in a layer: one MLP, or a choice among many.

Legend: T tokens of the step, C hidden size, I inner size, E experts, K experts of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sheaf_runtime.models.architectures import Names
from sheaf_runtime.models.config import ExpertsConfig, MLPConfig
from sheaf_runtime.models.layers import Linear, Ops, Target, activate


class MLP:
    """``down(act(gate(x)) * up(x))``, gate and up in one matrix, or ``down(act(up(x)))``."""

    def __init__(
        self, hidden: int, config: MLPConfig, *, dtype: torch.dtype, device: torch.device, ops: Ops
    ) -> None:
        inner = config.intermediate_size
        self._rows = (inner, inner) if config.gated else (inner,)
        self.gate_up = Linear(hidden, sum(self._rows), bias=config.bias, dtype=dtype, device=device)
        self.down = Linear(inner, hidden, bias=config.bias, dtype=dtype, device=device)
        self._act = activation(config, ops)

    def __call__(self, x_TC: Tensor) -> Tensor:
        return self.down(self._act(self.gate_up(x_TC)))

    def targets(self, prefix: str, names: Names) -> Iterator[Target]:
        yield from self.gate_up.targets(prefix, names.gate_up, self._rows)
        yield from self.down.targets(prefix, (names.down,), ())

    def pack(self, ops: Ops) -> None:
        self.gate_up.pack(ops)
        self.down.pack(ops)


def activation(config: MLPConfig, ops: Ops) -> Callable[[Tensor], Tensor]:
    """From [T, 2I] (gate first) or [T, I] to [T, I]."""
    if not config.gated:
        return lambda up: activate(up, config.activation)
    if config.activation == "silu":
        return ops.swiglu

    def gated(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return activate(gate, config.activation).mul_(up)

    return gated


class Experts:
    """K of E MLPs for each token. Each expert that some token chose runs once, on all of its tokens."""

    def __init__(
        self,
        hidden: int,
        config: ExpertsConfig,
        mlp: MLPConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        ops: Ops,
    ) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(config.count, *shape, dtype=dtype, device=device)

        inner = config.intermediate_size
        self._config = config
        self.shared = None
        if config.shared is not None:
            size = replace(mlp, intermediate_size=config.shared)
            self.shared = MLP(hidden, size, dtype=dtype, device=device, ops=ops)
        self.router = Linear(hidden, config.count, bias=config.bias, dtype=dtype, device=device)
        self.gate_up, self.down = empty(2 * inner, hidden), empty(hidden, inner)
        self.gate_up_bias = empty(2 * inner) if config.bias else None
        self.down_bias = empty(hidden) if config.bias else None
        self._act = activation(mlp, ops) if config.clamped is None else self._clamped

    def __call__(self, x_TC: Tensor) -> Tensor:
        weights_TK, chosen_TK = self.route(x_TC)
        flat = chosen_TK.flatten()
        order = flat.argsort(stable=True)  # by expert, then by token
        token = order // self._config.top_k
        weight = weights_TK.flatten()[order, None]
        x = x_TC[token]
        if self._config.scoring == "sigmoid_input":
            x = x * weight
        out_TC = torch.zeros_like(x_TC) if self.shared is None else self.shared(x_TC)
        start = 0
        for expert, count in enumerate(torch.bincount(flat, minlength=self._config.count).tolist()):
            if count:
                mine = slice(start, start + count)
                out = self._run(expert, x[mine])
                if self._config.scoring != "sigmoid_input":
                    out = (out * weight[mine]).to(x_TC.dtype)
                out_TC.index_add_(0, token[mine], out)
                start += count
        return out_TC

    def route(self, x_TC: Tensor) -> tuple[Tensor, Tensor]:
        """(weights, expert ids), [T, K] each."""
        scores_TE = self.router(x_TC)
        if self._config.scoring != "softmax":
            best, chosen = scores_TE.topk(self._config.top_k, dim=-1)
            if self._config.scoring == "sigmoid_input":
                return best.float().sigmoid().to(best.dtype), chosen
            return best.softmax(-1), chosen
        weights, chosen = scores_TE.float().softmax(-1).topk(self._config.top_k, dim=-1)
        if self._config.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen

    def _run(self, expert: int, x_TC: Tensor) -> Tensor:
        gate_up_bias = None if self.gate_up_bias is None else self.gate_up_bias[expert]
        down_bias = None if self.down_bias is None else self.down_bias[expert]
        inner = self._act(F.linear(x_TC, self.gate_up[expert], gate_up_bias))
        return F.linear(inner, self.down[expert], down_bias)

    def _clamped(self, gate_up: Tensor) -> Tensor:
        """GPT-OSS's: gates and ups take turns, both are bounded, and one is added to up."""
        assert self._config.clamped is not None
        alpha, limit = self._config.clamped
        gate = gate_up[..., ::2].clamp(max=limit)
        up = gate_up[..., 1::2].clamp(-limit, limit)
        return gate * torch.sigmoid(gate * alpha) * (up + 1)

    def targets(self, prefix: str, names: Names) -> Iterator[Target]:
        yield from self.router.targets(prefix, (names.router,), ())
        experts = prefix + names.experts
        if self.shared is not None:
            own = replace(names, gate_up=names.shared_gate_up, down=names.shared_down)
            yield from self.shared.targets(prefix, own)
        if names.expert_gate_up is None:
            yield f"{experts}.gate_up_proj", self.gate_up.transpose(1, 2)
            yield f"{experts}.down_proj", self.down.transpose(1, 2)
            if self.gate_up_bias is not None and self.down_bias is not None:
                yield f"{experts}.gate_up_proj_bias", self.gate_up_bias
                yield f"{experts}.down_proj_bias", self.down_bias
            return
        for expert in range(self._config.count):
            parts = zip(names.expert_gate_up, self.gate_up[expert].chunk(2), strict=True)
            for name, target in (*parts, (names.expert_down, self.down[expert])):
                yield f"{experts}.{expert}.{name}.weight", target

    def pack(self, ops: Ops) -> None:
        self.router.pack(ops)
        if self.shared is not None:
            self.shared.pack(ops)
