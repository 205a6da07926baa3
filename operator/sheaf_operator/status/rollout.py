"""Conditions about what runs: whether its image is outdated, was rolled back, and who else writes. Pure.

RolledBack and Contested are there only while they are true.
"""

from __future__ import annotations

from sheaf_operator.problems.problem import Problem
from sheaf_operator.status.situation import Situation, State, told


def given_up(s: Situation) -> Problem | None:
    """The revision that was rolled back, in its failing pod's words."""
    wanted = s.revision
    if s.progress is None or s.progress.left is None or wanted is None:
        return None
    revision, failure = s.progress.left
    return Problem(
        "RolledBack",
        f"revision {revision.hash} (image {revision.image}) failed with {failure.reason}: {failure.said};"
        f" revision {wanted.hash} is back",
    )


def rolled_back(s: Situation) -> State | None:
    problem = given_up(s)
    return told("True", problem) if problem else None


def image_current(s: Situation) -> State | None:
    """Whether the operator's default image has moved on."""
    if s.revision is None or s.progress is None:
        return None
    if newer := s.progress.newer_image:
        said = f"image {s.revision.image} runs, the operator's is {newer}"
        return told("False", Problem("ImageOutdated", said))
    return State("True", "ImageCurrent", f"image {s.revision.image}")


def contested(s: Situation) -> State | None:
    return told("True", s.contested) if s.contested else None
