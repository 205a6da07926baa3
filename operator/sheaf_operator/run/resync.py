"""One list per kind, now and then: what the watches have missed, and whether a kind is there at all.

A watch can hang without an error, and one that was interrupted does not tell of deletions; a list does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from sheaf_operator.cluster import kinds
from sheaf_operator.cluster.cache import Cache
from sheaf_operator.cluster.client import Cluster
from sheaf_operator.cluster.errors import ApiError, KindMissing, Unreachable
from sheaf_operator.cluster.kinds import Kind
from sheaf_operator.cluster.store import EVERYWHERE, Name

log = logging.getLogger(__name__)


class Resync:
    """`news` is called with the keys about which the list of a kind had some."""

    def __init__(self, cluster: Cluster, cache: Cache, news: Callable[[Kind, set[Name]], None]) -> None:
        self._cluster, self._cache, self._news = cluster, cache, news
        self._failed: set[Kind] = set()
        self._unwatched: set[tuple[Kind, str]] = set()
        self._refused: dict[Kind, str] = {}

    @property
    def unfinished(self) -> bool:
        """Whether some kind could not be listed, is not there yet, or appeared and has objects of which no
        watch has told: one that begins after a deletion never tells of it.
        """
        silent = any(self._cache.holds(kind, scope) for kind, scope in self._unwatched)
        return bool(self._failed or self._cache.missing) or silent

    def watched(self, kind: Kind, namespace: str) -> None:
        """A watch has told of an object of this kind."""
        self._unwatched -= {(kind, namespace), (kind, EVERYWHERE)}

    @property
    def refused(self) -> str:
        """What the API server does not let us list, in its words."""
        return "; ".join(self._refused.values())

    async def everything(self) -> None:
        for kind in kinds.ALL:
            try:
                for scope in self._cache.scopes:
                    await self._one(kind, scope)
            except (ApiError, Unreachable) as error:
                self._failed.add(kind)
                log.warning("%s could not be listed: %s", kind.plural, error)
                if isinstance(error, ApiError) and error.forbidden:
                    self._refused[kind] = error.message
            else:
                self._failed.discard(kind)
                self._refused.pop(kind, None)

    async def _one(self, kind: Kind, scope: str) -> None:
        newest = self._cache.newest(kind, scope)
        try:
            objects, version = await self._cluster.list(kind, scope)
        except KindMissing:
            changed = self._cache.lacks(kind)
            self._unwatched.add((kind, scope))
        else:
            changed = self._cache.replace(kind, objects, version, scope, newest)
        self._news(kind, changed)
