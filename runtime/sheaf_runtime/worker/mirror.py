"""The token ids of the running requests, where the device has them, so that a sampled token is the next
step's input without a visit to the host.

All that is done here is done in the order of the steps on the device: a row may be given to another request
while a step that writes into it is under way.

Legend: R rows, L cells of a row, S requests that get a token, T tokens of a step, N drafts of a step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sheaf_runtime.worker.step_buffer import There, to_device

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class TokenMirror:
    """``ids_RL`` in int32. A cell is row * L + position. Where the host's memory is the device's, numpy does
    the work: torch's way to a few numbers is as long as to many."""

    def __init__(self, rows: int, width: int, device: torch.device, *, apart: bool) -> None:
        """``apart``: see ``StepBuffers``."""
        self.width = width
        self.ids_RL = torch.zeros(rows, width, dtype=torch.int32, device=device)
        self._flat: Int32 | None = None if apart else self.ids_RL.view(-1).numpy()
        self._view = None if self._flat is None else self._flat.data

    def enter(self, row: int, ids: Int32) -> None:
        self.ids_RL[row, : len(ids)] = to_device(ids, self.ids_RL.device)

    def write(self, cells_N: Int64, tokens_N: Int32, there: There) -> None:
        """Tokens that the host brings."""
        if self._flat is not None:
            self._flat[cells_N] = tokens_N
        else:
            self.ids_RL.view(-1).index_copy_(0, there(cells_N), there(tokens_N))

    def gather(self, cells_T: Int64, tokens_T: Int32, there: There) -> None:
        """Into ``tokens_T`` of the step's buffer, on the device."""
        if self._flat is not None:
            self._flat.take(cells_T, out=tokens_T, mode="clip")
        else:
            torch.index_select(self.ids_RL.view(-1), 0, there(cells_T), out=there(tokens_T))

    def append_here(self, cells: list[int], tokens: list[int]) -> None:
        """``append`` in the host's memory, the shortest way."""
        view = self._view
        assert view is not None
        for cell, token in zip(cells, tokens, strict=True):
            view[cell] = token if token > 0 else 0

    def append(self, cells_S: Int64, tokens_S: Tensor, there: There) -> None:
        """Where there is no token (-1), any id serves until the request has ended."""
        if self._flat is not None:
            self._flat[cells_S] = np.maximum(tokens_S.numpy(), 0)
        else:
            self.ids_RL.view(-1).index_copy_(0, there(cells_S), tokens_S.clamp(min=0).to(torch.int32))
