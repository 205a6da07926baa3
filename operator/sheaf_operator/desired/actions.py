"""What there is to write: the actions of a plan. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from sheaf_operator.cluster.observed import Json
from sheaf_operator.desired.revision import Revision
from sheaf_operator.desired.rollout import Rollout
from sheaf_operator.problems.problem import Problem


@dataclass(frozen=True)
class Apply:
    """Server-side apply. `create`: refuse if somebody else has made such an object in the meantime."""

    obj: Json
    create: bool


@dataclass(frozen=True)
class Delete:
    """Delete an object of ours, provided it is still the one that was observed."""

    kind: str
    name: str
    uid: str


@dataclass(frozen=True)
class Scale:
    """Set the predictor Deployment's replicas, provided that it is still as it was observed."""

    replicas: int


Action = Apply | Delete | Scale


@dataclass(frozen=True)
class Progress:
    """How far the spec has reached the pods. `rollout`: how old pods make way; `left`: the revision that was
    given up and why; `newer_image`: what the operator's defaults would give now, if that is another image.
    """

    rollout: Rollout
    left: tuple[Revision, Problem] | None = None
    newer_image: str | None = None


@dataclass(frozen=True)
class Plan:
    """`revision` is what the InferenceService should use; None if nothing can be rendered. `again`: in how
    many seconds another plan may differ although nothing has happened.
    """

    actions: tuple[Action, ...] = ()
    revision: Revision | None = None
    problem: Problem | None = None
    progress: Progress | None = None
    again: float | None = None
