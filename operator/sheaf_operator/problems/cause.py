"""Why an LLMDeployment stands still: the one problem to show, and whose Events would tell more. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from sheaf_operator.cluster.observed import (
    Json,
    Observed,
    condition,
    is_ready,
    is_terminating,
    pod_name,
    revision_of,
)
from sheaf_operator.problems import kserve, volumes
from sheaf_operator.problems.containers import pulls_silently
from sheaf_operator.problems.deployment import of_deployment, of_progress
from sheaf_operator.problems.ended import of_ended
from sheaf_operator.problems.evidence import newest_first, seconds, turned
from sheaf_operator.problems.pod import of_pod
from sheaf_operator.problems.problem import MAX_MESSAGE, Problem, clip
from sheaf_operator.problems.scheduling import claims
from sheaf_operator.problems.terminating import of_terminating

MOST = 3  # objects to ask about at a time
HALF = MAX_MESSAGE // 2


def cause(observed: Observed, revision: str | None, resource: str, now: datetime) -> Problem | None:
    """What keeps pods of this revision from serving, the newest pod's problem first."""
    pods = newest_first(p for p in observed.pods if revision_of(p) == revision)
    pods = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    live = [pod for pod in pods if not is_terminating(pod)]
    if observed.replicas is not None and sum(map(is_ready, live)) >= observed.replicas:
        # What others have ended with is history, and nobody wants a further one.
        waits = None if live else of_terminating(list(observed.pods), now)
        return kserve.of_kserve(observed, revision, now) or waits
    found = (of_pod(pod, resource, now, observed.events) for pod in live)
    stuck = _held_up(next((problem for problem in found if problem), None), observed, now)
    ended = of_ended(pods, now)
    if stuck and ended:
        said = f"{clip(stuck.said, HALF)}; before that {clip(ended.said, HALF)}"
        return replace(stuck, said=said, since=ended.since or stuck.since)
    return (
        stuck
        or ended
        or of_deployment(observed.deployment, observed.replica_sets)
        or kserve.of_kserve(observed, revision, now)
        or (None if live else of_terminating(list(observed.pods), now))
        or (None if _loads(live) else of_progress(observed.deployment))
    )


def _held_up(problem: Problem | None, observed: Observed, now: datetime) -> Problem | None:
    """What a new pod lacks may be held by one that was to end and does not, such as a lost node's."""
    hanging = of_terminating(list(observed.pods), now) if problem and problem.lacks else None
    if problem is None or hanging is None:
        return problem
    return Problem(hanging.reason, f"{hanging.said}; {problem.said}", problem.lacks, hanging.since)


def _loads(live: list[Json]) -> bool:
    """Whether a model is being loaded, which may take longer than the Deployment waits."""
    return any(
        "running" in entry.get("state", {})
        for pod in live
        for key in ("initContainerStatuses", "containerStatuses")
        for entry in pod.get("status", {}).get(key, [])
    )


@dataclass(frozen=True)
class Question:
    """An object whose Events would tell why it stands still."""

    kind: str
    name: str


def questions(observed: Observed, revision: str | None, now: datetime) -> list[Question]:
    """Nothing unless something stands still: at rest nobody is asked."""
    found: list[Question] = []
    if kserve.overdue(observed, revision, now) >= kserve.ASK:
        found.append(Question("InferenceService", observed.name))
    for pod in newest_first(observed.live_pods):
        if is_ready(pod):
            continue
        scheduled = condition(pod, "PodScheduled") or {}
        late = volumes.waits_for_node(pod) and seconds(turned(pod, "PodScheduled"), now) >= volumes.ASK
        if late or pulls_silently(pod):
            found.append(Question("Pod", pod_name(pod)))
        elif "PersistentVolumeClaims" in scheduled.get("message", ""):
            found += [Question("PersistentVolumeClaim", name) for name in claims(pod)]
    return list(dict.fromkeys(found))[:MOST]
