"""What a write that failed means to the user. Pure."""

from __future__ import annotations

from sheaf_operator.cluster.errors import ApiError, KindMissing, Unreachable
from sheaf_operator.cluster.observed import Json
from sheaf_operator.problems.problem import Problem, clip
from sheaf_operator.problems.refused import quota


def of_write(error: ApiError | Unreachable, created: Json | None) -> Problem:
    """`created` is the object that the write was to make, None if it changed one that was there."""
    if isinstance(error, KindMissing):
        return Problem("KServeMissing", "the cluster has no InferenceService kind")
    if isinstance(error, Unreachable):
        return Problem("ApplyFailed", str(error))
    if created is not None and error.code == 409:
        words = f"{created['kind']} {created['metadata']['name']} exists and was not made by Sheaf"
        return Problem("NameConflict", f"{words}: delete it or choose another name")
    said = clip(f"the API server refused: {error.message}")
    if error.code == 403 and "exceeded quota" in error.message:
        return Problem("QuotaExceeded", said, quota(error.message))
    if error.code == 403 and 'User "' in error.message:
        return Problem("OperatorForbidden", said)
    if error.permanent:
        return Problem("Rejected", said)
    return Problem("ApplyFailed", clip(error.message))
