"""One writer at a time: a Lease that is renewed all along and checked before each write.

The holder trusts its own clock only: it holds the Lease until `duration` minus a margin after it *started*
its last successful renewal, and abandons a write that is not answered by the end of that margin. Another
candidate waits until the record has not changed for the full duration on *its* clock. So the two never
overlap, however their wall clocks differ.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

from sheaf_operator.cluster.errors import ApiError, Unreachable

Json = dict[str, Any]
log = logging.getLogger(__name__)
MARGIN = 0.2  # share of the duration by which the holder stops before the others may start


class NotHolder(Exception):
    """This process does not hold the Lease, so it must not write."""


class LeaseStore(Protocol):
    async def get_lease(self, namespace: str, name: str) -> Json | None: ...
    async def write_lease(self, namespace: str, name: str, lease: Json, create: bool) -> Json: ...


class Lease:
    def __init__(
        self,
        store: LeaseStore,
        namespace: str,
        name: str,
        identity: str,
        duration: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._namespace, self._name = store, namespace, name
        self._identity, self._duration, self._clock = identity, duration, clock
        self._valid_until = float("-inf")
        self.term = 0  # how many times it has been won
        self.refused = ""  # why the API server lets us have no Lease at all, in its words
        self._seen: tuple[str, float] = ("", 0.0)  # another holder's record, and since when it is unchanged

    @property
    def held(self) -> bool:
        return self._clock() < self._valid_until

    def check(self) -> None:
        """Raises NotHolder unless this process may write now."""
        if not self.held:
            raise NotHolder(f"Lease {self._namespace}/{self._name} is not held by {self._identity}")

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Around one write. Raises NotHolder if another process may write before it has been answered."""
        self.check()
        left = self._valid_until + self._duration * MARGIN - self._clock()
        try:
            async with asyncio.timeout(left):
                yield
        except TimeoutError as error:
            raise NotHolder(f"a write took longer than the Lease {self._namespace}/{self._name}") from error

    async def run(self) -> None:
        """Acquire and renew until cancelled, then give the Lease back."""
        try:
            while True:
                was = self.held
                try:
                    await self.attempt()
                    self.refused = ""
                except (ApiError, Unreachable) as error:
                    log.warning("Lease: %s", error)
                    if isinstance(error, ApiError) and error.forbidden:
                        self.refused = error.message
                if self.held != was:
                    log.info("Lease %s/%s %s", self._namespace, self._name, "held" if self.held else "lost")
                await asyncio.sleep(self._duration / 5)
        finally:
            await self.release()

    async def attempt(self) -> bool:
        """Acquire or renew once. Raises ApiError or Unreachable."""
        started = self._clock()
        lease = await self._store.get_lease(self._namespace, self._name)
        if lease is not None and not self._may_take(lease, started):
            return False
        try:
            await self._store.write_lease(
                self._namespace, self._name, self._record(lease, self._identity), create=lease is None
            )
        except ApiError as error:
            if error.code == 409:  # somebody else was faster
                return False
            raise
        self.term += not self.held
        self._valid_until = started + self._duration * (1 - MARGIN)
        return True

    def _may_take(self, lease: Json, now: float) -> bool:
        holder = lease["spec"].get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        version = lease["metadata"]["resourceVersion"]
        if self._seen[0] != version:
            self._seen = (version, now)
        return now - self._seen[1] >= float(lease["spec"].get("leaseDurationSeconds") or self._duration)

    def _record(self, lease: Json | None, holder: str) -> Json:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        old = lease["spec"] if lease else {}
        same = old.get("holderIdentity") == holder
        metadata = lease["metadata"] if lease else {"name": self._name, "namespace": self._namespace}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": int(self._duration),
                "acquireTime": old.get("acquireTime", now) if same else now,
                "renewTime": now,
                "leaseTransitions": int(old.get("leaseTransitions", 0)) + bool(lease and holder and not same),
            },
        }

    async def release(self) -> None:
        """Let the next one start at once; nothing is lost if this fails."""
        if not self.held:
            return
        self._valid_until = float("-inf")
        try:
            lease = await self._store.get_lease(self._namespace, self._name)
            if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                await self._store.write_lease(
                    self._namespace, self._name, self._record(lease, ""), create=False
                )
        except (ApiError, Unreachable) as error:
            log.info("Lease not given back: %s", error)
