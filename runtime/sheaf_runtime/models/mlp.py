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
from sheaf_runtime.models.layers import Adaptable, Linear, Ops, RowAdapters, Target
from sheaf_runtime.models.schemes import PackedLinear


class MLP:
    """``down(act(gate(x)) * up(x))``, gate and up in one matrix, or ``down(act(up(x)))``."""

    def __init__(
        self, hidden: int, config: MLPConfig, *, dtype: torch.dtype, device: torch.device, ops: Ops
    ) -> None:
        inner = config.intermediate_size
        self._rows = (inner, inner) if config.gated else (inner,)
        self.gate_up = Linear(
            hidden, sum(self._rows), bias=config.bias, dtype=dtype, device=device, scheme=ops.scheme
        )
        self.down = Linear(inner, hidden, bias=config.bias, dtype=dtype, device=device, scheme=ops.scheme)
        self._act = activation(config, ops)

    def __call__(self, x_TC: Tensor, adapters: RowAdapters | None = None) -> Tensor:
        return self.down(self._act(self.gate_up(x_TC, adapters)), adapters)

    def adaptable(self, prefix: str, names: Names) -> Iterator[Adaptable]:
        yield Adaptable(self.gate_up, tuple(self.gate_up.modules(prefix, names.gate_up, self._rows)))
        yield Adaptable(self.down, tuple(self.down.modules(prefix, (names.down,), ())))

    def targets(self, prefix: str, names: Names) -> Iterator[Target]:
        yield from self.gate_up.targets(prefix, names.gate_up, self._rows)
        yield from self.down.targets(prefix, (names.down,), ())

    def pack(self, ops: Ops) -> int:
        return self.gate_up.pack(ops) + self.down.pack(ops)


def activation(config: MLPConfig, ops: Ops) -> Callable[[Tensor], Tensor]:
    """From [T, 2I] (gate first) or [T, I] to [T, I]."""
    return lambda x_TC: ops.activate(x_TC, config.activation, config.gated)


class Experts:
    """K of E MLPs for each token. Each expert that some token chose runs once, on all of its tokens, or the
    backend runs all at once."""

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
        self._grouped = ops.experts
        self.shared = None
        if config.shared is not None:
            size = replace(mlp, intermediate_size=config.shared)
            self.shared = MLP(hidden, size, dtype=dtype, device=device, ops=ops)
        self.router = Linear(hidden, config.count, bias=config.bias, dtype=dtype, device=device)
        # gate_up and down of all experts; gone once they are packed.
        self._weights: tuple[Tensor, Tensor] | None = (empty(2 * inner, hidden), empty(hidden, inner))
        self._packed: list[tuple[PackedLinear, PackedLinear]] = []
        self.gate_up_bias = empty(2 * inner) if config.bias else None
        self.down_bias = empty(hidden) if config.bias else None
        self._act = activation(mlp, ops)
        if config.clamped is not None:
            alpha, limit = config.clamped
            self._act = lambda gate_up: ops.clamped_swiglu(gate_up, alpha, limit)

    def __call__(self, x_TC: Tensor) -> Tensor:
        weights_TK, chosen_TK = self.route(x_TC)
        if self._grouped is None:
            return self._one_by_one(x_TC, weights_TK, chosen_TK)
        assert self._weights is not None
        gate_up, down = self._weights
        out_TC = self._grouped(
            x_TC,
            weights_TK,
            chosen_TK,
            (gate_up, self.gate_up_bias),
            (down, self.down_bias),
            self._act,
            self._config.scoring == "sigmoid_input",
        )
        return out_TC if self.shared is None else out_TC + self.shared(x_TC)

    def _one_by_one(self, x_TC: Tensor, weights_TK: Tensor, chosen_TK: Tensor) -> Tensor:
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
                # A softmax goes row by row; the bits of torch's sigmoid depend on how many values it has.
                pairs = torch.stack((best.float(), torch.zeros_like(best, dtype=torch.float32)), dim=-1)
                return pairs.softmax(-1)[..., 0].to(best.dtype), chosen
            return best.softmax(-1), chosen
        weights, chosen = scores_TE.float().softmax(-1).topk(self._config.top_k, dim=-1)
        if self._config.renormalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen

    def _run(self, expert: int, x_TC: Tensor) -> Tensor:
        gate_up_bias = None if self.gate_up_bias is None else self.gate_up_bias[expert]
        down_bias = None if self.down_bias is None else self.down_bias[expert]
        if self._packed:
            gate_up, down = self._packed[expert]
            return down(self._act(gate_up(x_TC, gate_up_bias)), down_bias)
        assert self._weights is not None
        weight_gate_up, weight_down = (weight[expert] for weight in self._weights)
        inner = self._act(F.linear(x_TC, weight_gate_up, gate_up_bias))
        return F.linear(inner, weight_down, down_bias)

    def targets(self, prefix: str, names: Names) -> Iterator[Target]:
        assert self._weights is not None
        gate_up_ECC, down_ECC = self._weights
        yield from self.router.targets(prefix, (names.router,), ())
        experts = prefix + names.experts
        if self.shared is not None:
            own = replace(names, gate_up=names.shared_gate_up, down=names.shared_down)
            yield from self.shared.targets(prefix, own)
        if names.expert_gate_up is None:
            yield f"{experts}.gate_up_proj", gate_up_ECC.transpose(1, 2)
            yield f"{experts}.down_proj", down_ECC.transpose(1, 2)
            if self.gate_up_bias is not None and self.down_bias is not None:
                yield f"{experts}.gate_up_proj_bias", self.gate_up_bias
                yield f"{experts}.down_proj_bias", self.down_bias
            return
        for expert in range(self._config.count):
            parts = zip(names.expert_gate_up, gate_up_ECC[expert].chunk(2), strict=True)
            for name, target in (*parts, (names.expert_down, down_ECC[expert])):
                yield f"{experts}.{expert}.{name}.weight", target

    def pack(self, ops: Ops) -> int:
        saved = self.router.pack(ops)
        if self.shared is not None:
            saved += self.shared.pack(ops)
        if self._grouped is not None:
            return saved
        assert self._weights is not None
        saved += sum(ops.scheme.saved_bytes({"weight": one}) for all_ in self._weights for one in all_)
        packed = [
            (ops.scheme.pack({"weight": a}, ops), ops.scheme.pack({"weight": b}, ops))
            for a, b in zip(*self._weights, strict=True)
        ]
        self._packed = [(a, b) for a, b in packed if a is not None and b is not None]
        if self._packed:
            self._weights = None
        return saved
