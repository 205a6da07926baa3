"""Mode External: another scaler decides through /scale; Sheaf keeps the bounds and chooses who goes."""

from typing import Any

import kube_objects as k
import pytest
from operator_world import World, reading
from sheaf_operator.scaling.external import follow


@pytest.mark.parametrize(
    ("replicas", "current", "desired", "limiting"),
    [
        (3, 1, 3, "External"),
        (0, 1, 1, "MinReplicas"),
        (1, 3, 1, "External"),
        (99, 1, 5, "MaxReplicas"),
        (None, 2, 2, "NoExternalCount"),
        (None, 9, 5, "MaxReplicas"),
    ],
)
def test_the_count_is_followed_within_the_bounds(
    replicas: int | None, current: int, desired: int, limiting: str
) -> None:
    given = k.spec(autoscaling={"mode": "External", "maxReplicas": 5}, replicas=replicas)
    decision = follow(given, current)
    assert (decision.desired, decision.limiting) == (desired, limiting)


def external(count: int | None, replicas: int, ready: int | None = None) -> World:
    given = k.spec(autoscaling={"mode": "External", "maxReplicas": 5}, replicas=count)
    return World(given, k.settled(given, replicas=replicas, ready=replicas if ready is None else ready))


def said(world: World, kind: str) -> Any:
    return next(c for c in world.cluster.status["conditions"] if c["type"] == kind)


async def test_more_are_written_at_once() -> None:
    assert await external(4, 1).run() == [("scale", 4)]


async def test_fewer_go_one_at_a_time_the_least_busy_first() -> None:
    world = external(1, 3)
    world.scraper.load = {"p0": reading(running=5, blocks=50), "p1": reading(running=1, blocks=2)}
    world.scraper.load["p2"] = reading(running=3, blocks=30)
    assert await world.run() == [("cost", "p1", "-1000")]
    assert await world.run(2.1) == [("scale", 2)]


async def test_at_rest_nothing_is_written() -> None:
    world = external(2, 2)
    for _ in range(5):
        assert await world.run(5) == []
    assert said(world, "AutoscalingActive")["reason"] == "External"


async def test_a_count_that_kserve_lost_comes_back_though_nobody_is_ready() -> None:
    assert await external(3, 1, ready=0).run() == [("scale", 3)]


async def test_no_count_yet_is_said_with_what_to_do() -> None:
    world = external(None, 1)
    assert await world.run() == []
    active = said(world, "AutoscalingActive")
    assert (active["status"], active["reason"]) == ("False", "NoExternalCount")
    assert "kubectl scale llmd/NAME --replicas=N" in active["message"]
