"""The scaler when a write fails, a mode switches, time passes unseen, or the Deployment is replaced."""

import json
from dataclasses import replace
from typing import Any

import kube_objects as k
import pytest
from operator_world import World, reading, scaling_world
from sheaf_operator.api import names
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.api.status import LLMDeploymentStatus
from sheaf_operator.cluster.errors import ApiError
from sheaf_operator.settings import Settings

Conditions = dict[str, dict[str, Any]]


class Conflicting:
    """Makes the next `times` writes of /scale fail with `code`."""

    def __init__(self, world: World, times: int, code: int = 409) -> None:
        self.left, self.code, self.inner = times, code, world.cluster.scale
        world.cluster.scale = self.scale  # type: ignore[method-assign]

    async def scale(self, *what: Any) -> None:
        if self.left:
            self.left -= 1
            raise ApiError(self.code, "Conflict", "the object has been modified")
        await self.inner(*what)


def said(world: World) -> Conditions:
    return {c["type"]: c for c in world.cluster.status["conditions"]}


def busy(world: World, count: int) -> None:
    world.scraper.load = {f"p{n}": reading(waiting=9, running=8) for n in range(count)}


def with_policies(**scale_down: Any) -> World:
    given = k.spec(
        autoscaling={
            "maxReplicas": 9,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0, **scale_down}},
        }
    )
    return World(given, k.settled(given, replicas=4, ready=4))


async def test_a_scale_down_policy_slows_and_does_not_stop() -> None:
    """Marking the pod is no change of the count: the policy must not count it."""
    world = with_policies(policies=[{"type": "Pods", "value": 1, "periodSeconds": 60}])
    assert await world.run() == [("cost", "p0", "-1000")]
    assert await world.run(2.1) == [("scale", 3)]
    of = k.revision(k.spec())
    world.change(deployment=k.deployment(3), pods=tuple(k.pod(f"p{n}", of, ready=True) for n in range(1, 4)))
    for _ in range(10):
        assert await world.run(5) == []
    assert await world.run(10) == [("cost", "p1", "-1000")]
    assert await world.run(2.1) == [("scale", 2)]


async def test_advice_is_not_counted_as_a_change() -> None:
    given = k.spec(
        autoscaling={
            "mode": "Advisory",
            "maxReplicas": 9,
            "behavior": {"scaleUp": {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 600}]}},
        }
    )
    world = World(given, k.settled(given))
    busy(world, 1)
    for _ in range(4):
        await world.run(5)
        assert world.cluster.status["autoscaling"]["desired"] == 2


async def test_a_conflict_is_tried_again_at_once() -> None:
    world = scaling_world(1)
    world.scraper.load = {"p0": reading(waiting=30, running=8)}
    Conflicting(world, 1)
    assert await world.run() == []
    assert world.again is not None
    assert world.again <= 1
    assert await world.run(world.again) == [("scale", 4)]


@pytest.mark.parametrize("code", [404, 409])
async def test_a_deployment_made_anew_gets_its_count_back_despite_conflicts(code: int) -> None:
    world = scaling_world(3, window=300)
    await world.run()
    fresh = k.deployment(1)
    fresh["metadata"]["uid"] = "another"
    world.change(deployment=fresh, pods=(k.pod("q", k.revision(k.spec())),))
    Conflicting(world, 2, code)
    assert await world.run(5) == []
    assert await world.run(5) == []
    assert await world.run(5) == [("scale", 3)]


async def test_a_count_that_is_restored_obeys_the_bounds_of_now() -> None:
    world = scaling_world(5, window=300)
    await world.run()
    fresh = k.deployment(1)
    fresh["metadata"]["uid"] = "another"
    given = k.spec(autoscaling={"maxReplicas": 2})
    owner = k.owner(generation=2)
    owner["spec"] = given.model_dump(by_alias=True, exclude_none=True)
    world.change(owner=owner, deployment=fresh, pods=())
    assert await world.run(5) == [("scale", 2)]


def restarted(world: World, **change: Any) -> World:
    """The operator anew, with what the API server has; `change` came meanwhile."""
    assert world.cluster.observed is not None
    given = LLMDeploymentSpec.model_validate(world.cluster.observed.owner["spec"])
    again = World(given, world.cluster.observed)
    again.change(**change)
    return again


def made_anew() -> dict[str, Any]:
    fresh = k.deployment(1)
    fresh["metadata"]["uid"] = "another"
    return {"deployment": fresh, "pods": (k.pod("q", k.revision(k.spec())),)}


async def test_the_count_is_restored_even_if_the_operator_restarts_meanwhile() -> None:
    world = scaling_world(3, window=300)
    await world.run()
    again = restarted(world, **made_anew())
    assert await again.run() == [("scale", 3)]
    assert again.cluster.status["autoscaling"]["limiting"] == "Recreated"
    again.change(deployment=k.deployment(3))
    assert await again.run(5) == []
    again.change(deployment=k.deployment(2))  # from here on it is as if nothing had happened
    assert await again.run(5) == []


async def test_a_restart_during_a_scale_down_restores_nothing() -> None:
    world = scaling_world(3)
    assert await world.run() == [("cost", "p0", "-1000")]
    assert world.cluster.status["autoscaling"]["desired"] == 1
    again = restarted(world)
    assert await again.run() == [("cost", "p0", "-1000")]


@pytest.mark.parametrize("restart", [False, True])
async def test_a_suspended_deployment_that_serves_again_begins_from_its_minimum(restart: bool) -> None:
    world = scaling_world(3, window=300)
    await world.run()
    spec = dict(world.cluster.observed.owner["spec"])  # type: ignore[union-attr]
    owner = k.owner(generation=2, status=world.cluster.status)
    world.change(owner={**owner, "spec": {**spec, "suspend": True}}, deployment=None, pods=())
    await world.run(5)
    if restart:
        world = restarted(world)
        await world.run()
    owner = k.owner(generation=3, status=world.cluster.status)
    world.change(owner={**owner, "spec": spec}, **made_anew())
    assert ("scale", 3) not in await world.run(5)


@pytest.mark.parametrize("restart", [False, True])
async def test_advice_is_not_restored(restart: bool) -> None:
    given = k.spec(autoscaling={"mode": "Advisory", "maxReplicas": 9})
    world = World(given, k.settled(given))
    world.scraper.load = {"p0": reading(waiting=30, running=8)}
    await world.run()
    assert world.cluster.status["autoscaling"]["desired"] == 4
    if restart:
        world = restarted(world)
    world.change(**made_anew())
    await world.run(5)
    assert world.cluster.status["autoscaling"]["desired"] == 1


async def test_a_fixed_count_that_meets_a_conflict_is_not_news() -> None:
    given = k.spec(replicas=2, autoscaling={"mode": "Disabled"})
    world = World(given, k.settled(given))
    Conflicting(world, 1)
    assert await world.run() == []
    assert said(world)["Reconciling"]["status"] == "False"
    assert await world.run(1) == [("scale", 2)]


async def test_nothing_shrinks_after_a_gap_longer_than_the_window() -> None:
    """What was needed meanwhile is not known, so the window begins anew."""
    world = scaling_world(3, window=60)
    busy(world, 3)
    await world.run()
    world.scraper.load = {}
    for _ in range(12):
        assert await world.run(5 if _ else 500) == []
    assert await world.run(6) == [("cost", "p0", "-1000")]


async def test_losing_the_lease_forgets_what_another_may_have_changed() -> None:
    world = scaling_world(3, window=60)
    for _ in range(30):
        await world.run(5)
        world.scraper.load = {f"p{n}": reading(running=8) for n in range(3)}
    world.lease.held = False
    await world.run(5)
    reads = world.cluster.reads
    world.lease.held = True
    world.scraper.load = {}
    for _ in range(12):
        assert await world.run(5) == []
    assert world.cluster.reads > reads


@pytest.mark.parametrize("mode", ["Advisory", "Disabled"])
async def test_switching_the_scaler_off_takes_its_mark_back(mode: str) -> None:
    world = scaling_world(2)
    assert await world.run() == [("cost", "p0", "-1000")]
    pods = k.settled(k.spec(), replicas=2, ready=2).pods
    pods[0]["metadata"]["annotations"] = {names.DELETION_COST: "-1000"}
    owner = k.owner(generation=2)
    given = k.spec(autoscaling={"mode": mode, "maxReplicas": 5})
    owner["spec"] = given.model_dump(by_alias=True, exclude_none=True)
    world.change(owner=owner, pods=pods)
    assert await world.run(2.1) == [("cost", "p0", None)]
    world.change(pods=k.settled(k.spec(), replicas=2, ready=2).pods)
    assert await world.run(5) == []


async def test_lowering_the_maximum_steps_down_one_at_a_time() -> None:
    world = scaling_world(4, window=300)
    busy(world, 4)
    await world.run()
    owner = k.owner(generation=2)
    given = k.spec(autoscaling={"maxReplicas": 2})
    owner["spec"] = given.model_dump(by_alias=True, exclude_none=True)
    world.change(owner=owner)
    assert await world.run(5) == [("cost", "p0", "-1000")]
    assert await world.run(2.1) == [("scale", 3)]
    assert world.cluster.status["autoscaling"]["limiting"] == "MaxReplicas"


async def test_decisions_outlive_the_operator() -> None:
    world = scaling_world(1)
    busy(world, 1)
    await world.run()
    before = world.cluster.status["autoscaling"]["decisions"]
    assert len(before) == 1
    again = World(k.spec(autoscaling={"maxReplicas": 5}), world.cluster.observed)  # type: ignore[arg-type]
    again.change(deployment=k.deployment(2))
    await again.run()
    assert again.cluster.observed is not None
    assert again.cluster.observed.status["autoscaling"]["decisions"] == before


async def test_an_event_between_two_scrapes_does_not_put_the_next_one_off() -> None:
    world = scaling_world(1)
    await world.run()
    world.reconciler.touch(("ns", "m"))
    await world.run(4)
    assert world.again == pytest.approx(Settings().autoscale_interval - 4)


async def test_what_finishes_between_two_scrapes_bounds_what_a_growing_queue_asks_for() -> None:
    """Two requests come per second and one, of eight seconds, ends: two replicas' work and the queue's."""
    world = scaling_world(1)
    for step in range(12):
        load = reading(waiting=5 * step, running=8)
        world.scraper.load = {"p0": replace(load, finished=1000 + 5 * step)}
        await world.run(5)
    assert world.cluster.status["autoscaling"]["desired"] == 3


async def test_a_run_that_failed_reads_everything_again() -> None:
    world = scaling_world(1)
    await world.run()
    world.scraper.load = {"p0": reading(waiting=30, running=8)}
    world.cluster.fail = ApiError(500, "InternalError", "etcd is full")
    with pytest.raises(ApiError):
        await world.run(5)
    reads = world.cluster.reads
    world.cluster.fail = None
    await world.run(1)
    assert world.cluster.reads == reads + 1


async def test_a_deployment_of_no_replicas_is_settled() -> None:
    given = k.spec(replicas=0, autoscaling={"mode": "Disabled"})
    world = World(given, k.settled(given, replicas=0, ready=0))
    await world.run()
    assert (said(world)["Ready"]["reason"], said(world)["Reconciling"]["status"]) == ("ScaledToZero", "False")


async def test_the_scaler_is_not_active_while_nobody_is_ready() -> None:
    given = k.spec(autoscaling={"maxReplicas": 5})
    world = World(given, k.settled(given, replicas=2, ready=0))
    await world.run()
    active = said(world)["AutoscalingActive"]
    assert (active["status"], active["reason"]) == ("False", "NoReadyReplica")


async def test_the_longest_status_at_a_hundred_replicas_stays_under_16_kib() -> None:
    """A hundred pods with long errors, every condition with its longest message, ten long decisions."""
    given = k.spec(autoscaling={"maxReplicas": 100})
    of = k.revision(given)
    pods = []
    for n in range(100):
        pod = k.crashed("é" * 5000, of=of)
        pod["metadata"]["name"] = f"{'p' * 240}{n}"
        pods.append(pod)
    long = "é" * 390
    entry = {"time": "2026-01-01T00:00:00Z", "from": 1, "to": 2, "limiting": "QueueDepth", "reason": long}
    autoscaling = {"desired": 1, "limiting": "QueueDepth", "reason": long, "decisions": [entry] * 10}
    owner = k.owner(status={"autoscaling": autoscaling})
    world = World(given, k.settled(given, replicas=100, pods=tuple(pods), owner=owner))
    await world.run()
    assert len(json.dumps(world.cluster.status, ensure_ascii=False).encode()) < 16 * 1024
    LLMDeploymentStatus.model_validate(world.cluster.status)
    assert len(world.cluster.status["timeline"]) <= 10
