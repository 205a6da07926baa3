"""Whose trouble an exception is: one request's, or everybody's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

logger = logging.getLogger(__name__)
T = TypeVar("T")

_OF_THE_DEVICE = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
# What torch and Triton raise as plain RuntimeError.
_WORDS = ("CUDA", "CUBLAS", "CUDNN", "can't allocate memory")


def is_device_failure(error: BaseException) -> bool:
    """Whether nothing can be computed any more: the device is lost, or there is no memory."""
    if isinstance(error, _OF_THE_DEVICE):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def together_or_alone(
    what: str,
    together: Callable[[], T],
    alone: Callable[[], Iterable[Callable[[], T]]],
    failed: Callable[[int, Exception], T | None],
) -> list[T]:
    """Work for all requests of a step at once, and where that fails one by one, so that the request whose
    data make it fail ends alone.

    ``alone`` gives the work of each request, ``failed`` what stands for the one at this index, if anything
    does. Raises what the device raises.
    """
    try:
        return [together()]
    except Exception as error:
        if is_device_failure(error):
            raise
        logger.warning("the %s of a step failed together (%s): one by one", what, error)
    made: list[T | None] = []
    for index, work in enumerate(alone()):
        try:
            made.append(work())
        except Exception as error:
            if is_device_failure(error):
                raise
            made.append(failed(index, error))
    return [part for part in made if part is not None]
