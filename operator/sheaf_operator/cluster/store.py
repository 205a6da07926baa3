"""All objects of one kind as far as they are known, from watch events, lists and answers to our own writes.

The three arrive in any order. What makes the outcome right is the order that the API server gives to every
change, the resourceVersion: of two states of one object the later counts, and a list is complete as of its
own version, so that it also ends what a watch has missed. Pure data.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

Json = dict[str, Any]
Name = tuple[str, str]  # namespace, name
EVERYWHERE = ""


def name_of(obj: Json) -> Name:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]


def version_of(obj: Json) -> int:
    """resourceVersions of one kind compare as numbers (KEP-5504)."""
    return int(obj["metadata"]["resourceVersion"])


class Store:
    """`facets` says by what an object may be asked for, such as its owner's uid."""

    def __init__(self, facets: Callable[[Json], Iterable[Hashable]]) -> None:
        self._facets = facets
        self._objects: dict[Name, Json] = {}
        self._by_facet: dict[Hashable, set[Name]] = {}
        self._gone: dict[Name, int] = {}  # deletions that no list has confirmed yet
        self._listed: dict[str, int] = {}  # by namespace, or EVERYWHERE: the version of the last list

    def names(self) -> list[Name]:
        return list(self._objects)

    def get(self, name: Name) -> Json | None:
        return self._objects.get(name)

    def of(self, facet: Hashable) -> list[Json]:
        """The objects with this facet, by name."""
        return [self._objects[name] for name in sorted(self._by_facet.get(facet, ()))]

    def put(self, obj: Json) -> bool:
        """A state of an object was seen. Whether that is news."""
        name, version = name_of(obj), version_of(obj)
        if version <= self._known(name):
            return False
        self._gone.pop(name, None)
        self._set(name, obj)
        return True

    def remove(self, obj: Json) -> bool:
        """An object's end was seen, with the version of that. Whether that is news."""
        name, version = name_of(obj), version_of(obj)
        if version <= self._known(name):
            return False
        self._gone[name] = version
        return self._drop(name)

    def newest(self, namespace: str = EVERYWHERE) -> int:
        """The latest version that was seen; a list that is begun now cannot be older."""
        seen = [version_of(obj) for name, obj in self._objects.items() if namespace in (EVERYWHERE, name[0])]
        ends = [at for name, at in self._gone.items() if namespace in (EVERYWHERE, name[0])]
        return max([self._listed.get(namespace, -1), *seen, *ends])

    def replace(
        self, objects: Iterable[Json], version: int, namespace: str = EVERYWHERE, newest: int = -1
    ) -> list[Json]:
        """A list of all objects of `namespace` as of `version`, begun after the last one had ended.
        `newest` is what that was when it began.

        It counts for every name of which nothing later is known. Returns what was news: the states that it
        added or changed, and the last ones of what it ended.
        """
        # The API server's store was set back to a backup.
        rewound = version < max(newest, self._listed.get(namespace, -1))
        self._listed[namespace] = version
        listed = {name_of(obj): obj for obj in objects}
        here = {name for name in self._objects if namespace in (EVERYWHERE, name[0])}
        news = []
        for name in listed.keys() | here:
            known, now = self._objects.get(name), listed.get(name)
            later = version_of(known) if known else self._gone.get(name, -1)
            if (later > version and not rewound) or _same(known, now):
                continue
            news += [obj for obj in (now or known,) if obj]
            self._drop(name)
            if now:
                self._set(name, now)
        self._gone = {n: at for n, at in self._gone.items() if at > self._complete_until(n) and not rewound}
        return news

    def _known(self, name: Name) -> int:
        """The version as of which this name's state is known."""
        present = self._objects.get(name)
        if present is not None:
            return version_of(present)
        return max(self._gone.get(name, -1), self._complete_until(name))

    def _complete_until(self, name: Name) -> int:
        return max(self._listed.get(EVERYWHERE, -1), self._listed.get(name[0], -1))

    def _set(self, name: Name, obj: Json) -> None:
        self._drop(name)
        self._objects[name] = obj
        for facet in self._facets(obj):
            self._by_facet.setdefault(facet, set()).add(name)

    def _drop(self, name: Name) -> bool:
        old = self._objects.pop(name, None)
        if old is None:
            return False
        for facet in self._facets(old):
            names = self._by_facet[facet]
            names.discard(name)
            if not names:
                del self._by_facet[facet]
        return True


def _same(known: Json | None, now: Json | None) -> bool:
    if known is None or now is None:
        return known is now
    return version_of(known) == version_of(now) and known["metadata"].get("uid") == now["metadata"].get("uid")
