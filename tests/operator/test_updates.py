"""Which models run an outdated image, and how all of them get the present one."""

from dataclasses import replace
from typing import Any

import kube_objects as k
import pytest
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.desired.actions import Apply
from sheaf_operator.desired.notes import Notes
from sheaf_operator.desired.plan import plan
from sheaf_operator.desired.updates import next_up, state_of
from sheaf_operator.problems.problem import Problem
from sheaf_operator.run.updates import Updates
from sheaf_operator.settings import Settings

NEXT = "sheaf/runtime:next"
SPEC = k.spec()


def settled(spec: Any = SPEC, **more: Any) -> Observed:
    """Where admission gives every pod a mirror's image."""
    observed = k.settled(spec, **more)
    for pod in observed.pods:
        pod["spec"]["containers"][0]["image"] = "mirror.example/sheaf/runtime:1"
    return observed


def test_the_outdated_image_is_said_and_no_pod_restarts() -> None:
    result = plan(SPEC, settled(), NEXT, k.NOW)
    assert result.actions == ()
    assert result.progress is not None
    assert result.progress.newer_image == NEXT
    chosen = k.spec(pod={"image": "mine:1"})
    result = plan(chosen, settled(chosen), NEXT, k.NOW)
    assert result.progress is not None
    assert result.progress.newer_image is None


def test_restarted_at_takes_the_present_image_and_defaults_once() -> None:
    wanted = k.spec(rollout={"restartedAt": "2026-01-01T00:00:00Z"})
    result = plan(wanted, settled(), NEXT, k.NOW)
    assert result.revision is not None
    assert result.revision.image == NEXT
    done = k.carried_out(settled(), result)
    assert plan(wanted, done, NEXT, k.NOW).actions == ()
    assert plan(wanted, done, "sheaf/runtime:later", k.NOW).actions == ()


def test_a_renewal_makes_a_revision_of_its_own() -> None:
    before = settled()
    result = plan(SPEC, before, NEXT, k.NOW, renew=True)
    kinds = [a.obj["kind"] for a in result.actions if isinstance(a, Apply)]
    assert kinds == ["ServingRuntime", "InferenceService"]
    assert result.revision is not None
    assert (result.revision.image, result.revision.spec) == (NEXT, k.revision(SPEC).spec)
    assert result.revision.hash != k.revision(SPEC).hash
    after = k.carried_out(before, result)
    assert plan(SPEC, after, NEXT, k.NOW).actions == ()  # it stays without being asked for again
    assert plan(SPEC, after, NEXT, k.NOW, renew=True).actions == ()


def test_a_renewal_that_fails_is_rolled_back_and_not_tried_again() -> None:
    before = settled()
    renewed = k.carried_out(before, plan(SPEC, before, NEXT, k.NOW, renew=True))
    new = k.revision_with(SPEC, NEXT)
    failing = replace(renewed, pods=(*before.pods, k.crashed("boom", of=new, restarts=3)))
    result = plan(SPEC, failing, NEXT, k.NOW)
    assert state_of(SPEC, failing, result) == "Failed"
    back = replace(k.carried_out(failing, result), pods=before.pods)
    for renew in (False, True):
        result = plan(SPEC, back, NEXT, k.NOW, renew=renew)
        assert result.actions == ()
        assert state_of(SPEC, back, result) == "Failed"
    third = plan(SPEC, back, "sheaf/runtime:third", k.NOW)
    assert state_of(SPEC, back, third) == "Outdated"
    renewed = k.carried_out(back, plan(SPEC, back, "sheaf/runtime:third", k.NOW, renew=True))
    assert plan(SPEC, renewed, "sheaf/runtime:third", k.NOW).revision.image == "sheaf/runtime:third"  # type: ignore[union-attr]


def test_while_old_pods_are_left_it_is_updating() -> None:
    before = settled()
    renewed = k.carried_out(before, plan(SPEC, before, NEXT, k.NOW, renew=True))
    result = plan(SPEC, renewed, NEXT, k.NOW)
    assert state_of(SPEC, renewed, result) == "Updating"
    new = k.revision_with(SPEC, NEXT)
    done = replace(renewed, pods=(k.pod("p9", new, ready=True),))
    assert state_of(SPEC, done, plan(SPEC, done, NEXT, k.NOW)) == "Current"


PAUSED = k.spec(rollout={"paused": True})
BROKEN = settled(ready=0)
ROLLED_BACK = settled(
    runtimes=(
        k.runtime(k.revision(SPEC)),
        k.runtime(
            k.revision(k.spec(engine={"maxModelLen": 9})),
            notes=Notes(k.revision(SPEC).hash, Problem("ContainerCrashing", "boom")),
        ),
    )
)


@pytest.mark.parametrize(
    ("spec", "observed", "expected"),
    [
        (SPEC, settled(), "Outdated"),
        (k.spec(suspend=True), settled(k.spec(suspend=True), replicas=0), "Outdated"),
        (PAUSED, settled(PAUSED), "Held"),
        (SPEC, BROKEN, "Held"),
        (k.spec(engine={"maxModelLen": 9}), ROLLED_BACK, "Held"),
        (k.spec(pod={"image": "mine:1"}), settled(k.spec(pod={"image": "mine:1"})), "Current"),
    ],
    ids=["outdated", "suspended", "paused", "serves nobody", "rolled back", "an image of its own"],
)
def test_states(spec: Any, observed: Observed, expected: str) -> None:
    if observed.owner["metadata"]["name"] == "m" and spec.pod.image:
        observed = k.settled(spec)
    assert state_of(spec, observed, plan(spec, observed, NEXT, k.NOW)) == expected


A, B, C = ("a", "z"), ("b", "a"), ("b", "b")


@pytest.mark.parametrize(
    ("states", "at_once", "expected"),
    [
        ({A: "Outdated", B: "Outdated", C: "Outdated"}, 1, A),
        ({A: "Current", B: "Outdated", C: "Outdated"}, 1, B),
        ({A: "Updating", B: "Outdated", C: "Outdated"}, 1, None),
        ({A: "Updating", B: "Outdated", C: "Outdated"}, 2, B),
        ({A: "Failed", B: "Outdated", C: "Outdated"}, 9, None),
        ({A: "Held", B: "Current", C: "Outdated"}, 1, C),
        ({A: "Outdated", B: "Outdated"}, 1, None),
        ({A: "Current", B: "Current", C: "Held"}, 1, None),
    ],
    ids=[
        "by name",
        "next",
        "one is on its way",
        "two may be",
        "one failed",
        "held",
        "not all seen",
        "none left",
    ],
)
def test_who_is_next(states: Any, at_once: int, expected: Any) -> None:
    assert next_up(states, [A, B, C], at_once) == expected


def test_the_pace() -> None:
    now = [100.0]
    settings = Settings(image_updates="Rolling", image_updates_at_once=5, image_updates_interval=30)
    updates = Updates(settings, lambda: now[0], lambda: [A, B])
    outdated = plan(SPEC, settled(), NEXT, k.NOW)
    for key in (A, B):
        updates.note(key, SPEC, settled(), outdated)
    assert not updates.turn(B)
    assert updates.turn(A)
    updates.note(A, SPEC, settled(), plan(SPEC, settled(), k.IMAGE, k.NOW))
    assert not updates.turn(B)
    now[0] += 30
    assert updates.turn(B)


def test_by_default_nothing_is_rolled() -> None:
    updates = Updates(Settings(), lambda: 0.0, lambda: [A])
    assert updates.note(A, SPEC, settled(), plan(SPEC, settled(), NEXT, k.NOW)) == float("inf")
    assert not updates.turn(A)
