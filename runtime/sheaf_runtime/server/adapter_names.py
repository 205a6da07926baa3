"""The adapters by the names that requests choose them with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sheaf_runtime.config import LoraModule


@dataclass(frozen=True)
class ServedAdapter:
    """``id_`` is that of one load: what is loaded again under the same name has another one."""

    id_: int
    name: str
    path: str
    parent: str


class AdapterNames:
    """``model_names`` are the model's own; the first is the parent of adapters that name none."""

    def __init__(self, model_names: Sequence[str], modules: Sequence[LoraModule]) -> None:
        self._model_names = model_names
        self._served: dict[str, ServedAdapter] = {}
        self._ids = itertools.count(1)
        for module in modules:
            self.put(self.make(module))

    def __iter__(self) -> Iterator[ServedAdapter]:
        return iter(self._served.values())

    def get(self, name: str) -> ServedAdapter | None:
        return self._served.get(name)

    def make(self, module: LoraModule) -> ServedAdapter:
        """With an id of its own; nobody can choose it yet."""
        given = module.base_model_name
        parent = given if given is not None and given in self._model_names else self._model_names[0]
        return ServedAdapter(next(self._ids), module.name, module.path, parent)

    def put(self, adapter: ServedAdapter) -> ServedAdapter | None:
        """From now on requests can choose it. Returns the one that had its name."""
        before = self._served.get(adapter.name)
        self._served[adapter.name] = adapter
        return before

    def remove(self, name: str) -> ServedAdapter | None:
        return self._served.pop(name, None)


def name_problem(name: str, model_names: Sequence[str]) -> str | None:
    """Why an adapter cannot have this name."""
    if name in model_names:
        return f"{name} is the model's own name"
    if "," in name or not name.isprintable():
        return f"{name!r} must be printable and without commas, which stand between names in metrics"
    return None
