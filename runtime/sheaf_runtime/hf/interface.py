"""transformers' attention interface, answered by whatever attends at the moment.

transformers looks attention functions up by name, so each loaded model registers one of its own; what that
one calls is set for the time of a forward. It gets a layer's queries, keys and values after rotation,
[1, heads, T, D] each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

# (layer module, q [1, Q, T, D], k, v [1, K, T, D], what the layer says beside) -> [1, T, Q, D]
Attend = Callable[[Any, Tensor, Tensor, Tensor, dict[str, Any]], Tensor]
_counter = itertools.count()


class AttentionHook:
    """``name`` is what a model is loaded with as ``attn_implementation``."""

    def __init__(self) -> None:
        self.name = f"sheaf_{next(_counter)}"
        self._attend: Attend | None = None
        interface: Any = AttentionInterface
        interface.register(self.name, self._call)
        masks: Any = AttentionMaskInterface
        masks.register(self.name, _no_mask)

    @contextmanager
    def answered_by(self, attend: Attend) -> Iterator[None]:
        self._attend = attend
        try:
            yield
        finally:
            self._attend = None

    def _call(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        assert self._attend is not None, "attention outside a forward of ours"
        return self._attend(module, query, key, value, options), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Who sees what is known from the block tables."""
