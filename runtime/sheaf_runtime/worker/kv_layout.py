"""How the layers of a model share the pages of one pool.

Layers that keep the same tokens form a group with a block table of its own. All groups take the same tensors:
the first layer of each group the first tensor, and so on. So a page is the same bytes whichever group holds
it, and what windowed layers give back serves the others.
"""

from __future__ import annotations

from dataclasses import dataclass

from sheaf_runtime.models.config import LayerConfig
from sheaf_runtime.worker.plan import KVGroup

# Layers of one kind may be this much more than the fewest before they are cut: an idle tensor costs less than
# a further table.
SLACK = 1.25


@dataclass(frozen=True)
class KVLayout:
    """``tensors`` pairs of keys and values; layer l is in group ``group_of[l]``, tensor ``tensor_of[l]``."""

    groups: tuple[KVGroup, ...]
    tensors: int
    group_of: tuple[int, ...]
    tensor_of: tuple[int, ...]

    @property
    def page_bytes(self) -> int:
        return self.groups[0].page_bytes


def kv_layout(layers: tuple[LayerConfig, ...], layer_page_bytes: int) -> KVLayout:
    """``layer_page_bytes``: keys and values of one page in one layer."""
    kinds: dict[tuple[int | None, int | None], list[int]] = {}
    for index, layer in enumerate(layers):
        kinds.setdefault((layer.window, layer.chunk), []).append(index)
    counts = [len(members) for members in kinds.values()]
    size = max(counts) if max(counts) < SLACK * min(counts) else min(counts)
    parts = [
        (kind, tuple(members[start : start + size]))
        for kind, members in kinds.items()
        for start in range(0, len(members), size)
    ]
    # Full layers first: their pages decide what can be a prefix hit.
    parts.sort(key=lambda part: part[0] != (None, None))
    groups = tuple(
        KVGroup(
            kind="window" if window is not None else "chunk" if chunk is not None else "full",
            layers=part,
            page_bytes=size * layer_page_bytes,
            window=window,
            chunk=chunk,
        )
        for (window, chunk), part in parts
    )
    where = {layer: (g, t) for g, group in enumerate(groups) for t, layer in enumerate(group.layers)}
    return KVLayout(
        groups=groups,
        tensors=size,
        group_of=tuple(where[layer][0] for layer in range(len(layers))),
        tensor_of=tuple(where[layer][1] for layer in range(len(layers))),
    )
