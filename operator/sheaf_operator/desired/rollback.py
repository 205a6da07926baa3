"""A revision that fails is left for the last good one and not tried again until the spec changes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json, Observed, revision_of
from sheaf_operator.desired import revision as revisions
from sheaf_operator.desired.choice import recorded, runtime_of
from sheaf_operator.desired.notes import Notes, read
from sheaf_operator.desired.revision import Revision
from sheaf_operator.problems.deployment import of_deployment
from sheaf_operator.problems.pod import of_pod
from sheaf_operator.problems.problem import Problem

CRASHES = 2  # a container that ended once may have been unlucky


@dataclass(frozen=True)
class Course:
    """The revision to have, the runtimes to note it on, the hashes that must be kept for it, and the revision
    that was left with its failure. `again`: seconds until the one that fails has failed.
    """

    wanted: Revision
    notes: tuple[tuple[Revision, Notes], ...]
    needed: tuple[str | None, ...]
    left: tuple[Revision, Problem] | None = None
    again: float | None = None


def course(
    spec: LLMDeploymentSpec, observed: Observed, current: Revision | None, asked: Revision, now: datetime
) -> Course:
    """What is asked for, or what served before it once that has failed."""
    notes = read(runtime_of(observed, asked))
    good = recorded(observed, notes.fallback)
    found, again = notes.failure, None
    if found is None and current and current.hash == asked.hash:
        found, again = failure(spec, observed, current, now)
    needed: tuple[str | None, ...] = (asked.hash, current.hash if current else None, notes.fallback)
    if found is not None and good is not None and not spec.rollout.paused:
        noted = ((asked, Notes(good.hash, found)), (good, read(runtime_of(observed, good))))
        return Course(good, noted, needed, left=(asked, found))
    before = _served_last(observed, current)
    if current and current.hash != asked.hash and before not in (None, asked.hash):
        notes, needed = Notes(before, notes.failure), (*needed, before)
    return Course(asked, ((asked, notes),), needed, again=again)


def _served_last(observed: Observed, current: Revision | None) -> str | None:
    """The hash of the present revision, or of the one before it if it has not served."""
    if current is None or serves(observed, current):
        return current.hash if current else None
    return read(runtime_of(observed, current)).fallback


def renewal_left(
    spec: LLMDeploymentSpec, observed: Observed, wanted: Revision, newer_image: str | None
) -> tuple[Revision, Problem] | None:
    """The revision of the same spec with the newer default image that was tried and left."""
    for runtime in observed.runtimes:
        found, notes = revisions.read(runtime), read(runtime)
        if found and notes.failure and found.serves(spec) and found.image == newer_image:
            return found, notes.failure
    return None


def serves(observed: Observed, revision: Revision) -> bool:
    """Whether this revision serves, or has been rolled out before."""
    status = observed.status
    rolled_out = status.get("revision") == revision.hash and any(
        phase.get("phase") == "Ready" for phase in status.get("timeline", [])
    )
    return rolled_out or any(revision_of(pod) == revision.hash for pod in observed.ready_pods)


def failure(
    spec: LLMDeploymentSpec, observed: Observed, current: Revision, now: datetime
) -> tuple[Problem | None, float | None]:
    """Why the current revision, which has never served, has failed; else in how many seconds it will have."""
    if serves(observed, current):
        return None, None
    deadline = timedelta(seconds=spec.rollout.deadline_seconds)
    waits = []
    for problem, since in _failing(spec, observed, current, now):
        if (left := since + deadline - now) <= timedelta():
            return problem, None
        waits.append(left.total_seconds())
    return None, min(waits, default=None)


def _failing(
    spec: LLMDeploymentSpec, observed: Observed, current: Revision, now: datetime
) -> list[tuple[Problem, datetime]]:
    found = []
    for pod in observed.live_pods:
        if revision_of(pod) != current.hash or not _again_and_again(pod):
            continue
        problem = of_pod(pod, spec.accelerator.resource_name, now, observed.events)
        if problem and problem.failing:
            found.append((problem, datetime.fromisoformat(pod["metadata"]["creationTimestamp"])))
    refused = of_deployment(observed.deployment, observed.replica_sets)
    if refused and refused.failing and refused.since:
        found.append((refused, refused.since))
    return found


def _again_and_again(pod: Json) -> bool:
    status = pod.get("status", {})
    entries = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
    ended = any("terminated" in {**e.get("state", {}), **e.get("lastState", {})} for e in entries)
    return not ended or any(e.get("restartCount", 0) >= CRASHES for e in entries)
