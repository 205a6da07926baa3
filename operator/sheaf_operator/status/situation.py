"""All that an LLMDeployment's conditions depend on, and the questions that several of them ask. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Literal

from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json, Observed, revision_of
from sheaf_operator.desired.actions import Progress
from sheaf_operator.desired.revision import Revision
from sheaf_operator.problems.cause import cause
from sheaf_operator.problems.evidence import moment
from sheaf_operator.problems.problem import Problem, clip
from sheaf_operator.scaling.decide import Decision

Status = Literal["True", "False", "Unknown"]
PATIENCE = timedelta(minutes=10)
MAX_TEXT = 1000  # characters of a condition's message


@dataclass(frozen=True)
class State:
    status: Status
    reason: str
    message: str = ""


def told(status: Status, problem: Problem, before: str = "") -> State:
    """A problem as a condition has it: what was found, what to do, and where to read more. Where that is too
    long, what was found is cut.
    """
    end = f" ({problem.entry.page})"
    too_long = max(0, len(before) + len(problem.message) + len(end) - MAX_TEXT)
    shown = replace(problem, said=clip(problem.said, len(problem.said) - too_long))
    return State(status, problem.reason, f"{before}{shown.message}{end}")


@dataclass(frozen=True)
class Situation:
    """`problem` is what stopped the plan or the last write; `patience` how long what may mend is no stall."""

    spec: LLMDeploymentSpec
    observed: Observed
    revision: Revision | None
    now: datetime
    problem: Problem | None = None
    applied: bool = True  # the plan had nothing left to write
    capacity: Json | None = None
    decision: Decision | None = None
    patience: timedelta = PATIENCE
    progress: Progress | None = None  # of the rollout
    contested: Problem | None = None  # somebody else writes what we write

    @property
    def back(self) -> bool:
        """Whether what the spec asks for was rolled back."""
        left = self.progress.left if self.progress else None
        return bool(left and self.revision and not self.revision.serves(self.spec))

    @property
    def ready(self) -> int:
        return len(self.observed.ready_pods)

    @property
    def current_ready(self) -> int:
        return sum(revision_of(pod) == self.wanted for pod in self.observed.ready_pods)

    @property
    def old_pods(self) -> int:
        return sum(revision_of(pod) != self.wanted for pod in self.observed.live_pods)

    @property
    def wanted(self) -> str | None:
        """The hash of the revision that the pods should have."""
        return self.revision.hash if self.revision else None

    @property
    def rolled_out(self) -> bool:
        """The present revision has served or is to have no pod, and no pod of another one is left."""
        served = self.current_ready > 0 or self._has_served or self.observed.replicas == 0
        return self.applied and not self.old_pods and served

    @property
    def _has_served(self) -> bool:
        """Whether the status says that this very revision was ready before: it has been rolled out."""
        status = self.observed.status
        return bool(
            self.revision
            and status.get("revision") == self.revision.hash
            and any(p.get("phase") == "Ready" for p in status.get("timeline", []))
        )

    @cached_property
    def pod_problem(self) -> Problem | None:
        """What keeps pods of the present revision from serving."""
        if self.progress and self.progress.rollout.waits:
            return self.progress.rollout.waits
        return cause(self.observed, self.wanted, self.spec.accelerator.resource_name, self.now)

    @property
    def settled(self) -> bool:
        """Nothing is on its way and nothing is wrong: no look is needed before something changes."""
        if self.spec.suspend:
            return self.applied and not self.observed.pods
        return self.rolled_out and self.problem is None and self.pod_problem is None

    def stands(self, problem: Problem) -> bool:
        """Whether it waits for somebody: it cannot mend by itself, or has not within the patience."""
        if problem.entry.mends == "perhaps":
            since = self._planned_since() if problem is self.problem else problem.since
            return since is not None and self.now - since >= self.patience
        return problem.entry.mends == "never"

    def _planned_since(self) -> datetime | None:
        """Since when the plan's problem keeps the resource from being reconciled."""
        if self.problem is None:
            return None
        if self.problem.since is not None:
            return self.problem.since
        before = self.observed.status.get("conditions", [])
        found = (c for c in before if c["type"] == "Reconciling" and c["reason"] == self.problem.reason)
        return next((moment(c["lastTransitionTime"]) for c in found), None)
