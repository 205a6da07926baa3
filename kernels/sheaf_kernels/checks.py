"""Argument checks for kernel wrappers: every refusal names the argument and says what was expected."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sheaf_kernels.numerics import INTERPRETED

FLOATS = (torch.float16, torch.bfloat16, torch.float32)


class Checker:
    """Binds dimension letters to sizes as arguments are checked, so that later arguments must agree.

    >>> check = Checker("rms_norm")
    >>> check.tensor("x", x, "T C", FLOATS)
    >>> check.tensor("weight", weight, "C", [x.dtype])     # C is bound by x

    A letter may carry its value (``"T 2"`` wants a last dimension of 2). The last dimension of every tensor
    must be contiguous, because kernels address it without a stride; ``contiguous=True`` asks it of the whole.
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self.dims: dict[str, int] = {}
        self._bound_by: dict[str, str] = {}
        self._device: torch.device | None = None

    def __getitem__(self, letter: str) -> int:
        return self.dims[letter]

    def tensor(
        self,
        name: str,
        x: torch.Tensor,
        shape: str,
        dtypes: Iterable[torch.dtype],
        *,
        contiguous: bool = False,
    ) -> None:
        """Check one argument. Raises TypeError for a wrong type or dtype, ValueError for anything else."""
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{self.op}: {name} must be a torch.Tensor, got {type(x).__name__}")
        if x.dtype not in (allowed := tuple(dtypes)):
            wanted = " or ".join(str(d).removeprefix("torch.") for d in allowed)
            raise TypeError(f"{self.op}: {name} must be {wanted}, got {str(x.dtype).removeprefix('torch.')}")
        self._check_device(name, x)
        letters = shape.split()
        if x.dim() != len(letters):
            raise ValueError(
                f"{self.op}: {name} must have shape [{', '.join(letters)}], got {tuple(x.shape)}"
            )
        for letter, size in zip(letters, x.shape, strict=True):
            self._bind(name, x, letters, letter, size)
        if contiguous and not x.is_contiguous():
            raise ValueError(f"{self.op}: {name} must be contiguous, got strides {x.stride()}")
        if x.dim() > 0 and x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(
                f"{self.op}: the last dimension of {name} must be contiguous, got strides {x.stride()}"
            )

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"{self.op}: {message}")

    def _bind(self, name: str, x: torch.Tensor, letters: list[str], letter: str, size: int) -> None:
        if letter not in self.dims and not letter.isdigit():
            self.dims[letter], self._bound_by[letter] = size, name
            return
        wanted = int(letter) if letter.isdigit() else self.dims[letter]
        if size != wanted:
            why = "" if letter.isdigit() else f" with {letter}={wanted} from {self._bound_by[letter]}"
            raise ValueError(
                f"{self.op}: {name} must have shape [{', '.join(letters)}]{why}, got {tuple(x.shape)}"
            )

    def _check_device(self, name: str, x: torch.Tensor) -> None:
        if self._device is None:
            if x.device.type != "cuda" and not INTERPRETED:
                raise ValueError(
                    f"{self.op}: {name} is on {x.device}, but Triton kernels need CUDA "
                    "(TRITON_INTERPRET=1, set before triton is imported, runs them on the CPU for tests)"
                )
            self._device = x.device
        elif x.device != self._device:
            raise ValueError(f"{self.op}: {name} is on {x.device}, the other arguments on {self._device}")
