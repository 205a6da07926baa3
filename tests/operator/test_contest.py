"""Others who write what Sheaf writes: repaired, then named, and less and less often undone."""

import copy
from itertools import pairwise
from typing import Any

import kube_objects as k
import pytest
from operator_world import World, scaling_world
from sheaf_operator.desired.actions import Scale
from sheaf_operator.desired.contest import LONGEST, MEMORY, OFTEN, Contest

HPA = {
    "manager": "kube-controller-manager",
    "operation": "Update",
    "subresource": "scale",
    "time": "2026-01-01T00:10:00Z",
    "fieldsV1": {"f:spec": {"f:replicas": {}}},
}
OURS = {**HPA, "manager": "sheaf-operator", "time": "2026-01-01T00:20:00Z"}


def counted(replicas: int, uid: str = "dep-uid") -> Any:
    deployment = k.deployment(replicas)
    deployment["metadata"] |= {"managedFields": [HPA, OURS], "uid": uid}
    return deployment


async def fight(world: World, seconds: float, write: Any, step: float = 5.0) -> list[float]:
    """Somebody writes whenever we have; returns when we wrote."""
    written = []
    for _ in range(round(seconds / step)):
        if [w for w in await world.run(step) if w[0] in ("scale", "apply")]:
            written.append(world.now)
            write(world)
    return written


def gaps(times: list[float]) -> list[float]:
    return [b - a for a, b in pairwise(times)]


def said(world: World, kind: str) -> dict[str, Any] | None:
    return next((c for c in world.cluster.status["conditions"] if c["type"] == kind), None)


async def test_a_second_writer_of_the_count_is_named_and_not_fought_for_ever() -> None:
    given = k.spec(autoscaling={"minReplicas": 3, "maxReplicas": 5})
    world = World(given, k.settled(given, replicas=1))
    written = await fight(world, 3600, lambda w: w.change(deployment=counted(1)))
    assert len(written) < 20
    assert max(gaps(written)) >= LONGEST / 2
    contested = said(world, "Contested")
    assert contested is not None
    assert contested["reason"] == "CountContested"
    assert "field manager kube-controller-manager (through /scale)" in contested["message"]
    assert "External" in contested["message"]
    # When it has stopped for a while, nothing is said any more.
    world.change(deployment=counted(3))
    for _ in range(40):
        await world.run(MEMORY / 30)
    assert said(world, "Contested") is None


async def test_a_hand_that_slips_is_repaired_at_once() -> None:
    given = k.spec(replicas=2, autoscaling={"mode": "Disabled"})
    world = World(given, k.settled(given, replicas=1))
    for _ in range(OFTEN - 1):
        assert await world.run(60) == [("scale", 2)]
        world.change(deployment=counted(2))
        assert await world.run(60) == []
        world.change(deployment=counted(1))
    assert await world.run() == [("scale", 2)]
    assert said(world, "Contested") is None


async def test_nobodys_count_is_nobodys_fight() -> None:
    given = k.spec(autoscaling={"mode": "Disabled"})
    world = World(given, k.settled(given))
    for count in (2, 3, 1, 4, 2, 5):
        world.change(deployment=counted(count))
        assert not [w for w in await world.run(10) if w[0] == "scale"]
    assert said(world, "Contested") is None


async def test_a_deployment_made_anew_is_no_second_writer() -> None:
    world = scaling_world(3, window=300)
    for turn in range(6):
        await world.run(60)
        world.change(deployment=counted(1, uid=f"anew-{turn}"))
    await world.run(5)
    assert said(world, "Contested") is None


def smaller(world: World) -> None:
    """What a VerticalPodAutoscaler or a policy does: other requests than ours."""
    assert world.cluster.observed is not None
    service = copy.deepcopy(world.cluster.observed.inference_service)
    assert service is not None
    service["spec"]["predictor"]["model"]["resources"]["requests"]["cpu"] = "50m"
    service["metadata"]["managedFields"] = [
        {"manager": "vpa-updater", "operation": "Update", "time": "2026-01-01T00:30:00Z"},
        {"manager": "sheaf-operator", "operation": "Apply", "time": "2026-01-01T00:40:00Z"},
    ]
    world.change(inference_service=service)


async def test_drift_that_comes_back_is_repaired_less_and_less_often_and_named() -> None:
    given = k.spec()
    world = World(given, k.settled(given))
    await world.run()
    smaller(world)
    written = await fight(world, 3600, smaller)
    assert gaps(written)[:2] == [5.0, 5.0]
    assert max(gaps(written)) >= LONGEST / 2
    assert len(written) < 20
    contested = said(world, "Contested")
    assert contested is not None
    assert contested["reason"] == "FieldsContested"
    for words in ("InferenceService m", "resources.requests.cpu", "vpa-updater", "60 minutes"):
        assert words in contested["message"]
    assert said(world, "Ready")["status"] == "True"  # type: ignore[index]


async def test_admission_is_named_and_not_whoever_wrote_before() -> None:
    given = k.spec()
    world = World(given, k.settled(given))
    await world.run()

    def admit(obj: Any) -> Any:
        if obj["kind"] == "InferenceService":
            obj["spec"]["predictor"]["model"]["resources"]["requests"]["cpu"] = "50m"
        return obj

    world.cluster.admit = admit
    smaller(world)
    await fight(world, 600, smaller)
    contested = said(world, "Contested")
    assert contested is not None
    assert "admission (a mutating webhook or policy) has changed it" in contested["message"]
    assert "vpa-updater" not in contested["message"]


async def test_a_change_of_ours_is_no_fight_and_waits_for_nobody() -> None:
    given = k.spec()
    world = World(given, k.settled(given))
    await world.run()
    smaller(world)
    await fight(world, 600, smaller)
    owner = k.owner(generation=2)
    owner["spec"] = k.spec(engine={"maxModelLen": 7}).model_dump(by_alias=True, exclude_none=True)
    world.change(owner=owner)
    assert ("apply", "InferenceService") in await world.run(1)


@pytest.mark.parametrize("entries", [[], [{"manager": "sheaf-operator"}]])
def test_who_left_no_name_is_somebody(entries: list[Any]) -> None:
    deployment = counted(1)
    deployment["metadata"]["managedFields"] = entries
    observed = k.settled(k.spec(), deployment=deployment)
    contest, ours = Contest(), Scale(3)
    for turn in range(OFTEN + 1):
        contest = contest.look(observed, (), 10.0 * turn).wrote(ours, 10.0 * turn + 1)
    problem = contest.problem(50.0)
    assert problem is not None
    assert "somebody has changed it" in problem.message
