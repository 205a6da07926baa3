import asyncio
import copy
from typing import Any

import pytest
from sheaf_operator.cluster.errors import ApiError, Unreachable
from sheaf_operator.cluster.lease import Lease, NotHolder

DURATION = 10.0


class Store:
    """A Lease as the API server keeps it: optimistic concurrency by resourceVersion."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.down = False
        self.writes = 0

    async def get_lease(self, namespace: str, name: str) -> dict[str, Any] | None:
        if self.down:
            raise Unreachable("down")
        return copy.deepcopy(self.lease)

    async def write_lease(
        self, namespace: str, name: str, lease: dict[str, Any], create: bool
    ) -> dict[str, Any]:
        if self.down:
            raise Unreachable("down")
        sent = lease["metadata"].get("resourceVersion")
        have = self.lease and self.lease["metadata"]["resourceVersion"]
        if (create and self.lease is not None) or (not create and sent != have):
            raise ApiError(409, "Conflict", "changed")
        self.version += 1
        self.writes += 1
        self.lease = copy.deepcopy(lease)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.lease)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def candidates(*names: str) -> tuple[Store, Clock, list[Lease]]:
    store, clock = Store(), Clock()
    return store, clock, [Lease(store, "ns", "l", name, DURATION, clock) for name in names]


async def test_one_takes_it_and_the_other_waits() -> None:
    _, _, (a, b) = candidates("a", "b")
    assert await a.attempt()
    assert not await b.attempt()
    assert a.held
    assert not b.held
    a.check()
    with pytest.raises(NotHolder):
        b.check()


async def test_the_holder_stops_before_the_next_may_start() -> None:
    store, clock, (a, b) = candidates("a", "b")
    await a.attempt()
    await b.attempt()
    store_down_at = clock.now
    store.down = True
    with pytest.raises(Unreachable):
        await a.attempt()
    while a.held:
        clock.now += 0.5
    stopped = clock.now
    store.down = False
    while not await b.attempt():
        clock.now += 0.5
    assert stopped < clock.now
    assert clock.now - store_down_at >= DURATION


async def test_a_renewed_lease_is_not_taken() -> None:
    _, clock, (a, b) = candidates("a", "b")
    for _ in range(20):
        assert await a.attempt()
        assert not await b.attempt()
        clock.now += DURATION / 3


async def test_the_same_identity_takes_over_at_once() -> None:
    """A container that was killed and restarted in the same pod need not wait for itself."""
    store, clock, (a,) = candidates("a")
    await a.attempt()
    again = Lease(store, "ns", "l", "a", DURATION, clock)
    assert await again.attempt()


async def test_a_released_lease_is_free_at_once() -> None:
    store, _, (a, b) = candidates("a", "b")
    await a.attempt()
    await a.release()
    assert not a.held
    assert await b.attempt()
    assert store.lease is not None
    assert store.lease["spec"]["leaseTransitions"] == 1


async def test_losing_the_race_is_no_error() -> None:
    store, _, (a, b) = candidates("a", "b")
    honest = store.get_lease

    async def stale(namespace: str, name: str) -> dict[str, Any] | None:
        seen = await honest(namespace, name)
        store.get_lease = honest  # type: ignore[method-assign]
        await a.attempt()
        return seen

    store.get_lease = stale  # type: ignore[method-assign]
    assert not await b.attempt()
    assert a.held
    assert not b.held


async def test_a_write_is_abandoned_before_another_may_take_over() -> None:
    """The clock has passed to the very end of the Lease when the write begins to hang."""
    _, clock, (a,) = candidates("a")
    await a.attempt()
    clock.now += DURATION * 0.8 - 0.001
    a._duration = 0.0  # leaves the write a millisecond instead of the margin
    async with asyncio.timeout(5):
        with pytest.raises(NotHolder, match="took longer"):
            async with a.writing():
                await asyncio.Event().wait()


async def test_a_quick_write_is_left_alone_and_its_errors_pass() -> None:
    _, _, (a,) = candidates("a")
    with pytest.raises(NotHolder):
        async with a.writing():
            raise AssertionError
    await a.attempt()
    with pytest.raises(ApiError):
        async with a.writing():
            raise ApiError(500, "InternalError", "")
