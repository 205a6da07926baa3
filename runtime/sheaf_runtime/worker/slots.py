"""What a device holds a few of at a time: the least recently used makes room. Imports no torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

T = TypeVar("T")


class Slots(Generic[T]):
    """``fill`` makes the content of a slot from an id."""

    def __init__(self, count: int, fill: Callable[[int], T]) -> None:
        self._count, self._fill = count, fill
        self._held: OrderedDict[int, T] = OrderedDict()  # the least recently used first

    @property
    def ids(self) -> list[int]:
        return list(self._held)

    def hold(self, ids: Collection[int]) -> dict[int, T]:
        """The contents of all of ``ids``, which are of one step and at most as many as there are slots."""
        assert len(ids) <= self._count, f"{len(ids)} ids for {self._count} slots"
        for id_ in ids:
            if id_ in self._held:
                self._held.move_to_end(id_)
        missing = [id_ for id_ in ids if id_ not in self._held]
        while len(self._held) + len(missing) > self._count:
            self._held.popitem(last=False)
        for id_ in missing:
            self._held[id_] = self._fill(id_)
        return {id_: self._held[id_] for id_ in ids}

    def forget(self, id_: int) -> None:
        self._held.pop(id_, None)
