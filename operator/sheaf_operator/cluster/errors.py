"""What can go wrong between the operator and the API server."""

from __future__ import annotations

import json
from typing import Any


class ApiError(Exception):
    """The API server answered with an error. `code` is the HTTP status, `reason` the API's word for it."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message

    @property
    def permanent(self) -> bool:
        """The same request would be refused again: an invalid object, a webhook's refusal, no permission."""
        return self.code in (400, 403, 422)


class KindMissing(ApiError):
    """The API server does not know the kind: its CustomResourceDefinition is not installed."""


class Unreachable(Exception):
    """The API server gave no answer."""


class NoConfiguration(RuntimeError):
    """Neither in a cluster nor told of one."""


def of_answer(code: int, data: bytes) -> ApiError:
    try:
        status: Any = json.loads(data)
    except ValueError:
        status = {}
    if not isinstance(status, dict):
        status = {}
    if code == 404 and not status.get("details", {}).get("name"):
        return KindMissing(404, "KindMissing", "the API server does not know this kind")
    text = status.get("message") or data.decode(errors="replace")[:500]
    return ApiError(code, str(status.get("reason") or code), text)
