"""What one LLMDeployment's runs of the work queue keep for the next one."""

from __future__ import annotations

from dataclasses import dataclass, field

from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json, Observed
from sheaf_operator.cluster.reading import Reading
from sheaf_operator.desired.actions import Progress
from sheaf_operator.desired.contest import Contest
from sheaf_operator.desired.revision import Revision
from sheaf_operator.scaling.decide import Decision, History
from sheaf_operator.scaling.policy import Policy


@dataclass(frozen=True)
class Said:
    """A status that was written, what the API server had of it then, and when."""

    status: Json
    kept: Json
    at: float


@dataclass
class Memory:
    """What one key keeps between runs. Times are of the reconciler's clock."""

    observed: Observed | None = None
    spec: LLMDeploymentSpec | None = None  # of `observed`, once it has been read
    policy: Policy | None = None  # of `spec`
    revision: Revision | None = None  # that its InferenceService uses
    read_at: float = float("-inf")
    look_at: float = float("inf")  # when the plan may be another one although nothing has happened
    progress: Progress | None = None  # of the last plan
    contest: Contest = field(default_factory=Contest)
    dirty: bool = True
    history: History = field(default_factory=History)
    deployment_uid: str | None = None
    restore: int | None = None  # the count to get back to; 0 if there is none, None before the first decision
    decision: Decision | None = None
    readings: dict[str, Reading | str] = field(default_factory=dict)
    events: tuple[Json, ...] = ()  # of objects that stand still
    asked_at: float = float("-inf")  # for those
    settled: bool = False  # nothing is on its way and nothing is wrong
    resting: bool = False  # and every pod serves: no time that passes makes a difference
    told: tuple[object, ...] = ()  # what the last report was made of, besides `observed`
    told_of: Observed | None = None
    said: Said | None = None
    scraped_at: float = float("-inf")
    marked: tuple[str, float] | None = None  # the pod that should go next, and since when
