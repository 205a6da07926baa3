"""What can go wrong between the operator and the API server."""

from __future__ import annotations

import json
import re
from typing import Any

_HOPELESS = re.compile(
    r"failed to create typed (patch|live) object|field not declared in schema|request is too large"
)


class ApiError(Exception):
    """The API server answered with an error. `code` is the HTTP status, `reason` the API's word for it."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message

    @property
    def forbidden(self) -> bool:
        """Whether who asked has no right to, or is not known: a matter of the installation."""
        return self.code in (401, 403)

    @property
    def refused(self) -> bool:
        """Whether what was written or where is at fault, not the state of an API server, which
        may forbid for a moment what it grants.
        """
        return self.code == 404 or (self.permanent and not self.forbidden)

    @property
    def permanent(self) -> bool:
        """The same request would be refused again: an invalid object, a webhook's refusal, no permission.

        What its schemas do not know the API server answers with 500, as it does an object that is too large.
        """
        return self.code in (400, 403, 405, 413, 415, 422) or (
            self.code == 500 and bool(_HOPELESS.search(self.message))
        )


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
