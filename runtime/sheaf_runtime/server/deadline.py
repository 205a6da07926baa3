"""How long a request may take: ``timeout`` in its body, or the header, in seconds; the shorter one counts."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request

from sheaf_runtime.protocol.limits import BOUNDS
from sheaf_runtime.server.errors import ApiError

HEADER = "X-Request-Timeout"


def timeout_of(request: Request, in_body: float | None) -> float | None:
    """Raises ``ApiError`` 400 for a header that is no number of seconds. Of several the last counts."""
    headers: Sequence[str] = request.headers.getlist(HEADER)
    if not headers:
        return in_body
    try:
        seconds: float | str = float(headers[-1])
    except ValueError:
        seconds = headers[-1]
    if problem := BOUNDS["timeout"].problem(seconds):
        raise ApiError(400, f"the header {HEADER} {problem}", param="timeout")
    return float(seconds) if in_body is None else min(float(seconds), in_body)


def failed(message: str, *, timed_out: bool) -> ApiError:
    """What a request that ended in an error is answered."""
    if timed_out:
        return ApiError(504, message, param="timeout", code="timeout")
    return ApiError(500, message, code="request_failed")
