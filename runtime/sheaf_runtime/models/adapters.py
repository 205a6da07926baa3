"""LoRA adapters as peft writes them, on the layers of a decoder: ``y += (x A^T) B^T``.

What a layer holds stacked (q, k and v) has its modules' A stacked too, and their B as blocks on a diagonal: a
layer's share of an adapter is two matrices, whatever it is made of. B holds the scale, so that two products
and a sum are all that is left to do.

Legend: T rows of a step, C input and N output channels of a layer, r the rank of a module, R those of a
layer's modules together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sheaf_runtime.models.adapter_config import ALL_LINEAR, AdapterConfig, read_adapter_config
from sheaf_runtime.models.errors import AdapterError, AdapterMissingError
from sheaf_runtime.models.layers import Adaptable, Linear, Ops

WEIGHTS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
PREFIX, BASE = "base_model.model.", "model."  # the latter lacks in a decoder saved without its head
_TENSOR = re.compile(r"(.+)\.lora_([AB])\.weight")

# A [R, C] and B [N, R] of each layer that an adapter changes, on the host.
Shares = Mapping[Linear, tuple[Tensor, Tensor]]


def read_adapter(
    folder: Path, layers: Sequence[Adaptable], *, num_layers: int, max_rank: int, dtype: torch.dtype
) -> Shares:
    """Raises ``AdapterError``; messages name the file's key or the tensor."""
    config = read_adapter_config(folder, num_layers)
    with _opened(folder) as file:
        tensors = _Tensors(file, config, max_rank)
        shares = {part.layer: share for part in layers if (share := tensors.share(part, dtype)) is not None}
        tensors.refuse_rest()
    if not shares:
        raise AdapterError("it changes no layer of this model: none of its target_modules is one")
    return shares


def most_bytes(layers: Iterable[Adaptable], max_rank: int, dtype: torch.dtype) -> int:
    """Of an adapter that changes all layers at the highest rank."""
    sizes = (len(p.modules) * max_rank * (p.layer.in_features + p.layer.out_features) for p in layers)
    return sum(sizes) * dtype.itemsize


@contextmanager
def _opened(folder: Path) -> Iterator[Any]:
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / PICKLED).is_file():
            raise AdapterError(
                f"{PICKLED} is a pickle, which is never read; save the adapter anew with peft, which writes "
                f"{WEIGHTS}"
            )
        raise AdapterMissingError(f"No adapter found: {folder} has no {WEIGHTS}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{WEIGHTS} is damaged or incomplete: {error}") from error


class _Tensors:
    """The matrices of an adapter's file, each of which has to find its place."""

    def __init__(self, file: Any, config: AdapterConfig, max_rank: int) -> None:
        self._file, self._config, self._max_rank = file, config, max_rank
        self._left: dict[str, str] = {}  # module and matrix to the name in the file
        for name in file.keys():  # noqa: SIM118 - not a dict
            match = _TENSOR.fullmatch(name)
            key = f"{match[1].removeprefix(PREFIX)}.{match[2]}" if match else name
            self._left[key.removeprefix(BASE)] = name

    def share(self, part: Adaptable, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """What the adapter has for the modules of a layer; None: nothing."""
        pairs = [(rows, pair) for name, rows in part.modules if (pair := self._pair(part.layer, name, rows))]
        if not pairs:
            return None
        a_RC = torch.cat([a_rC for _, (a_rC, _) in pairs])
        # Kernels take weights in bfloat16 in pairs.
        ranks = len(a_RC) + len(a_RC) % 2
        a_RC = F.pad(a_RC, (0, 0, 0, ranks - len(a_RC)))
        b_NR = torch.zeros(part.layer.out_features, ranks)
        start = 0
        for rows, (_, b_Nr) in pairs:
            stop = start + b_Nr.shape[1]
            b_NR[rows, start:stop] = b_Nr
            start = stop
        if part.reorder is not None:
            part.reorder(b_NR)
        return self._stored(part, a_RC, dtype), self._stored(part, b_NR, dtype)

    def _stored(self, part: Adaptable, matrix: Tensor, dtype: torch.dtype) -> Tensor:
        stored = matrix.to(dtype)
        if not stored.isfinite().all():
            raise AdapterError(f"what it has for {part.modules[0][0]} is beyond the range of {dtype}")
        return stored

    def _pair(self, layer: Linear, module: str, rows: slice) -> tuple[Tensor, Tensor] | None:
        """A [r, C] and B [N, r] of one module, in float32, with the scale in B."""
        names = [self._left.pop(f"{module.removeprefix(BASE)}.{which}", None) for which in "AB"]
        named = self._config.names(module)
        if names == [None, None] and (not named or self._config.targets == ALL_LINEAR):
            return None
        for which, name in zip("AB", names, strict=True):
            if name is None:
                raise AdapterError(f"{WEIGHTS} lacks lora_{which} of {module}")
            if not named:
                raise AdapterError(f"{WEIGHTS} holds {name}, which target_modules does not name")
        rank = self._config.rank_of(module)
        if rank > self._max_rank:
            raise AdapterError(
                f"the rank of {module} is {rank}, above --max-lora-rank ({self._max_rank}); raise that"
            )
        a_name, b_name = names
        a_rC = self._read(a_name, (rank, layer.in_features))
        b_Nr = self._read(b_name, (rows.stop - rows.start, rank))
        return a_rC, b_Nr * self._config.scale_of(module)

    def _read(self, name: str | None, shape: tuple[int, int]) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise AdapterError(
                f"{name} is {list(tensor.shape)}, but the model and the rank make it {list(shape)}"
            )
        if not tensor.is_floating_point():
            raise AdapterError(f"{name} has dtype {tensor.dtype}: quantized adapters are not supported")
        if not tensor.isfinite().all():
            raise AdapterError(f"{name} holds values that are not finite numbers")
        return tensor.float()

    def refuse_rest(self) -> None:
        if self._left:
            names = sorted(self._left.values())
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise AdapterError(
                f"{WEIGHTS} holds {names[0]}{more}, for which this model has no place: adapters may change "
                "the linear layers of attention and of MLPs, not embeddings, heads or experts"
            )


class Adapter:
    """An adapter where the model is. ``deltas`` give what is added to a layer's output, [T, N] of [T, C]."""

    def __init__(self, shares: Shares, device: torch.device, ops: Ops) -> None:
        def there(matrix: Tensor) -> Tensor:
            return matrix.to(device, non_blocking=True)

        self.deltas = {layer: _delta(there(a_RC), there(b_NR), ops) for layer, (a_RC, b_NR) in shares.items()}


def _delta(a_RC: Tensor, b_NR: Tensor, ops: Ops) -> Callable[[Tensor], Tensor]:
    shrink, expand = ops.pack_linear(a_RC), ops.pack_linear(b_NR)
    if shrink is None or expand is None:
        return lambda x_TC: F.linear(F.linear(x_TC, a_RC), b_NR)
    return lambda x_TC: expand(shrink(x_TC, None), None)


@dataclass(frozen=True)
class AdapterRows:
    """See ``layers.RowAdapters``: each adapter of a step with the rows that are its."""

    parts: tuple[tuple[Adapter, slice | Tensor], ...]

    def add(self, layer: Linear, x_TC: Tensor, y_TN: Tensor) -> None:
        for adapter, rows in self.parts:
            delta = adapter.deltas.get(layer)
            if delta is None:
                continue
            if isinstance(rows, slice):
                y_TN[rows].add_(delta(x_TC[rows]))
            else:
                y_TN.index_add_(0, rows, delta(x_TC.index_select(0, rows)))
