"""A revision that fails is left for the last good one, and not tried again until the spec changes."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import kube_objects as k
import pytest
from sheaf_operator.api import names
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.desired.actions import Apply
from sheaf_operator.desired.plan import plan
from sheaf_operator.desired.revision import Revision

GOOD, BAD = k.spec(), k.spec(engine={"maxModelLen": 99})
A, B = k.revision(GOOD), k.revision(BAD)
LONG = timedelta(days=1)


def used(observed: Observed) -> str:
    assert observed.inference_service is not None
    runtime = observed.inference_service["spec"]["predictor"]["model"]["runtime"]
    label = observed.inference_service["spec"]["predictor"]["labels"][names.LABEL_REVISION]
    assert runtime == f"m-{label}"  # runtime and arguments always change together
    return str(label)


def rolling(spec: Any = BAD, **pods: Any) -> Observed:
    """`spec` has been asked for while A served; A's pod still serves, the new one is as given."""
    start = k.carried_out(k.settled(GOOD), plan(spec, k.settled(GOOD), k.IMAGE, k.NOW))
    old = k.pod("old", A, ready=True)
    return replace(start, pods=(old, pods.get("new", k.crashed("boom", of=k.revision(spec), restarts=5))))


FAILURES = {
    "a crash loop": (k.crashed("ValueError: no such flag", of=B, restarts=3), "ContainerCrashing"),
    "too little memory": (k.crashed("", 137, of=B, restarts=2, reason="OOMKilled"), "OutOfMemory"),
}


def waiting(reason: str, message: str, of: Revision = B) -> Any:
    pod = k.pod("p8", of)
    entry = pod["status"]["containerStatuses"][0]
    entry |= {"state": {"waiting": {"reason": reason, "message": message}}}
    return pod


FAILURES["an image that cannot be pulled"] = (waiting("ImagePullBackOff", "not found"), "ImageNotFound")


@pytest.mark.parametrize("kind", FAILURES)
def test_what_fails_past_the_deadline_is_left_for_what_served(kind: str) -> None:
    pod, reason = FAILURES[kind]
    observed = rolling(new=pod)
    assert used(observed) == B.hash
    early = plan(BAD, observed, k.IMAGE, k.NOW - timedelta(hours=1) + timedelta(seconds=300))
    assert early.actions == ()
    assert early.again == 310  # the pod is ten seconds younger than the resource
    late = plan(BAD, observed, k.IMAGE, k.NOW)
    back = k.carried_out(observed, late)
    assert used(back) == A.hash
    assert late.revision is not None
    assert late.revision.hash == A.hash
    assert late.progress is not None
    assert late.progress.left is not None
    revision, problem = late.progress.left
    assert (revision.hash, problem.reason) == (B.hash, reason)
    assert len([a for a in late.actions if isinstance(a, Apply)]) == 2  # the note, and one flip


def test_it_is_not_tried_again_until_the_spec_changes() -> None:
    back = k.carried_out(rolling(), plan(BAD, rolling(), k.IMAGE, k.NOW))
    settled = replace(back, pods=(k.pod("old", A, ready=True),))
    again = plan(BAD, settled, k.IMAGE, k.NOW + LONG)
    assert again.actions == ()
    assert again.progress is not None
    assert again.progress.left is not None  # and it is still said
    # The scaler's bounds are no other revision.
    wider = k.spec(engine={"maxModelLen": 99}, autoscaling={"maxReplicas": 9})
    settled = replace(settled, budget=k.budget(wider))
    assert plan(wider, settled, k.IMAGE, k.NOW + LONG).actions == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"engine": {"maxModelLen": 98}},
        {"engine": {"maxModelLen": 99}, "rollout": {"restartedAt": "2026-01-02T00:00:00Z"}},
    ],
)
def test_another_spec_is_tried(fields: dict[str, Any]) -> None:
    back = k.carried_out(rolling(), plan(BAD, rolling(), k.IMAGE, k.NOW))
    settled = replace(back, pods=(k.pod("old", A, ready=True),))
    fixed = k.spec(**fields)
    result = plan(fixed, settled, k.IMAGE, k.NOW + LONG)
    tried = k.carried_out(settled, result)
    assert used(tried) == k.revision(fixed).hash
    assert result.progress is not None
    assert result.progress.left is None
    # Should that one fail too, what served is still known.
    failing = replace(tried, pods=(k.pod("old", A, ready=True), k.crashed(of=k.revision(fixed), restarts=2)))
    assert used(k.carried_out(failing, plan(fixed, failing, k.IMAGE, k.NOW + LONG))) == A.hash


def test_what_failed_once_is_tried_again_when_it_is_asked_for_anew() -> None:
    back = k.carried_out(rolling(), plan(BAD, rolling(), k.IMAGE, k.NOW))
    served = replace(back, pods=(k.pod("old", A, ready=True),))
    undone = k.carried_out(served, plan(GOOD, served, k.IMAGE, k.NOW))
    assert used(undone) == A.hash
    assert used(k.carried_out(undone, plan(BAD, undone, k.IMAGE, k.NOW))) == B.hash


def test_the_first_revision_has_nothing_to_go_back_to() -> None:
    observed = k.settled(BAD, pods=(k.crashed("boom", of=B, restarts=9),))
    assert plan(BAD, observed, k.IMAGE, k.NOW + LONG).actions == ()
    # Nor has its correction: what never served is not good.
    result = plan(GOOD, observed, k.IMAGE, k.NOW)
    fixed = replace(k.carried_out(observed, result), pods=(k.crashed("boom", of=A, restarts=9),))
    assert used(fixed) == A.hash
    assert plan(GOOD, fixed, k.IMAGE, k.NOW + LONG).actions == ()


def test_with_recreate_the_last_good_one_is_known_though_nothing_serves() -> None:
    spec = k.spec(engine={"maxModelLen": 99}, rollout={"strategy": "Recreate"})
    observed = replace(rolling(spec), pods=(k.crashed("boom", of=B, restarts=3),))
    assert used(k.carried_out(observed, plan(spec, observed, k.IMAGE, k.NOW))) == A.hash


def test_a_revision_in_between_that_never_served_is_skipped() -> None:
    """A serves, B is asked for and crashes, C follows at once and crashes too: A is the last good one."""
    other = k.spec(engine={"maxModelLen": 98})
    first = rolling()
    second = k.carried_out(first, plan(other, first, k.IMAGE, k.NOW - timedelta(minutes=59)))
    failing = replace(second, pods=(k.pod("old", A, ready=True), k.crashed(of=k.revision(other), restarts=2)))
    assert used(failing) == k.revision(other).hash
    assert used(k.carried_out(failing, plan(other, failing, k.IMAGE, k.NOW))) == A.hash


@pytest.mark.parametrize(
    ("pod", "why"),
    [
        (k.unschedulable("0/1 nodes are available: 1 node(s) didn't match.", B), "a place may come"),
        (k.unschedulable("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", B), "a device may come"),
        (k.crashed("boom", of=B, restarts=1), "one crash may be bad luck"),
        (k.pod("new", B), "it still loads"),
        (k.pod("new", B, ready=True), "it serves"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fail_is_not_left(pod: Any, why: str) -> None:
    observed = rolling(new=pod)
    assert plan(BAD, observed, k.IMAGE, k.NOW + LONG).actions == ()


def test_one_pod_that_serves_speaks_for_the_revision() -> None:
    observed = rolling(new=k.pod("new", B, ready=True))
    both = replace(observed, pods=(*observed.pods, k.crashed(of=B, restarts=9)))
    assert used(k.carried_out(both, plan(BAD, both, k.IMAGE, k.NOW + LONG))) == B.hash


def test_what_has_served_and_fails_later_is_kept() -> None:
    """A lost disk is no fault of the revision: going back would not mend it."""
    status = {"revision": B.hash, "timeline": [{"phase": "Ready"}]}
    observed = rolling()
    later = replace(observed, owner=k.owner(status=status), pods=(k.crashed("boom", of=B, restarts=9),))
    assert plan(BAD, later, k.IMAGE, k.NOW + LONG).actions == ()


def test_a_paused_rollout_is_left_where_it_is() -> None:
    paused = k.spec(engine={"maxModelLen": 99}, rollout={"paused": True})
    assert plan(paused, rolling(), k.IMAGE, k.NOW + LONG).actions == ()


def test_pods_that_admission_refuses_are_a_failure() -> None:
    failure = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": 'pods "m-1" is forbidden: violates PodSecurity "restricted:latest"',
        "lastTransitionTime": "2026-01-01T00:00:20Z",
    }
    pods = (k.pod("old", A, ready=True),)
    observed = replace(rolling(), deployment=k.deployment(conditions=[failure]), pods=pods)
    assert used(k.carried_out(observed, plan(BAD, observed, k.IMAGE, k.NOW))) == A.hash


def test_notes_survive_everything_else_that_is_written() -> None:
    """Drift of a runtime is repaired with its notes, and history keeps the one to go back to."""
    observed = rolling()
    runtime = next(r for r in observed.runtimes if r["metadata"]["name"] == f"m-{B.hash}")
    assert runtime["metadata"]["annotations"][names.ANNOTATION_FALLBACK] == A.hash
    runtime["spec"]["containers"][0]["image"] = "evil"
    younger = [k.revision(k.spec(engine={"maxModelLen": n})) for n in (1, 2, 3)]
    crowd = tuple(k.runtime(r, created="2026-01-01T00:20:00Z") for r in younger)
    repaired = k.carried_out(
        replace(observed, runtimes=(*observed.runtimes, *crowd)),
        plan(
            BAD, replace(observed, runtimes=(*observed.runtimes, *crowd)), k.IMAGE, k.NOW - timedelta(hours=1)
        ),
    )
    left = {r["metadata"]["name"]: r for r in repaired.runtimes}
    assert {f"m-{A.hash}", f"m-{B.hash}"} <= left.keys()
    assert left[f"m-{B.hash}"]["metadata"]["annotations"][names.ANNOTATION_FALLBACK] == A.hash


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"reason": 1}'])
def test_damaged_notes_are_none(text: str) -> None:
    observed = rolling(new=k.pod("new", B))
    for runtime in observed.runtimes:
        runtime["metadata"]["annotations"][names.ANNOTATION_FAILURE] = text
    assert used(k.carried_out(observed, plan(BAD, observed, k.IMAGE, k.NOW))) == B.hash
