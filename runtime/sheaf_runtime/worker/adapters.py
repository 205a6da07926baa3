"""The adapters of a model: those that are loaded, and which rows of a step are whose.

Legend: T tokens of a step, R its requests, S rows of which something is wanted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sheaf_runtime.models.adapters import Adapter, AdapterRows, Shares, most_bytes, read_adapter
from sheaf_runtime.models.layers import Adaptable, Ops, StepAdapters
from sheaf_runtime.worker.slots import Slots

logger = logging.getLogger(__name__)
Int64 = npt.NDArray[np.int64]
NOBODY = -1


class Adapters:
    """``load`` and ``drop`` may be called on any thread, beside steps.

    What is loaded is on the host, and ``slots`` of them are on the device. Where that is the host, they are
    put in order for its kernels when they are loaded, and a slot is a name.
    """

    def __init__(
        self,
        layers: Sequence[Adaptable],
        *,
        num_layers: int,
        slots: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
        ops: Ops,
    ) -> None:
        self._layers = layers
        self._num_layers, self._max_rank, self._dtype = num_layers, max_rank, dtype
        self._device, self._ops = device, ops
        self._on_host: dict[int, Adapter | Shares] = {}
        self._slots = Slots(slots, self._placed)
        self.most_bytes = most_bytes(layers, max_rank, dtype)  # of one adapter

    def load(self, id_: int, path: str) -> None:
        """Raises ``AdapterError``."""
        started = time.perf_counter()
        shares = read_adapter(
            Path(path),
            self._layers,
            num_layers=self._num_layers,
            max_rank=self._max_rank,
            dtype=self._dtype,
        )
        if self._device.type == "cpu":
            self._on_host[id_] = Adapter(shares, self._device, self._ops)
        else:  # copies from pinned memory need not be waited for
            pinned = {layer: (a_RC.pin_memory(), b_NR.pin_memory()) for layer, (a_RC, b_NR) in shares.items()}
            self._on_host[id_] = pinned
        logger.info("loaded the adapter %s in %.2f s", path, time.perf_counter() - started)

    def drop(self, id_: int) -> None:
        """No later step names it."""
        self._slots.forget(id_)
        self._on_host.pop(id_, None)

    def _placed(self, id_: int) -> Adapter:
        held = self._on_host[id_]
        return held if isinstance(held, Adapter) else Adapter(held, self._device, self._ops)

    def of_step(
        self,
        own_R: Sequence[int | None],
        count_R: Int64,
        own_S: Sequence[int | None],
        there: Callable[[Int64], Tensor],
    ) -> StepAdapters | None:
        """``own_R``: the adapter of each request, None: it has none. ``count_R``: its tokens. ``own_S``: the
        same of rows of which something is wanted. None: nobody has an adapter."""
        ids = {owner for owner in own_R if owner is not None}
        if not ids:
            return None
        placed = self._slots.hold(ids)

        def rows(own: Int64) -> AdapterRows:
            return AdapterRows(
                tuple((placed[id_], _rows(np.flatnonzero(own == id_), there)) for id_ in ids if id_ in own)
            )

        return StepAdapters(rows(np.repeat(_numbers(own_R), count_R)), rows(_numbers(own_S)))


def _numbers(own: Sequence[int | None]) -> Int64:
    return np.array([NOBODY if owner is None else owner for owner in own], np.int64)


def _rows(index: Int64, there: Callable[[Int64], Tensor]) -> slice | Tensor:
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first + 1 == len(index) else there(index)
