"""Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

MOST_CHARACTERS = 800
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class ApiError(HTTPException):
    """An answer that is an error. ``message`` says what to change, ``param`` names the request's field."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status_code, str(self.detail), self.param, self.code)


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    # What was sent may be quoted, but megabytes of it need not come back.
    message, param = message[:MOST_CHARACTERS], param and param[:MOST_CHARACTERS]
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: ApiError) -> Response:
    return Response(orjson.dumps(error.body), error.status_code, error.headers, "application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Every error of the application, the framework's own included, gets OpenAI's body."""

    async def api_error(_: Request, error: Exception) -> Response:
        if not isinstance(error, ApiError):
            assert isinstance(error, HTTPException)
            message = {404: "There is no such route.", 405: "This route does not take that method."}.get(
                error.status_code, str(error.detail)
            )
            error = ApiError(error.status_code, message, headers=error.headers)
        return error_response(error)

    async def validation_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(from_validation(error.errors()))

    async def unexpected(_: Request, error: Exception) -> Response:
        return error_response(ApiError(500, f"internal error: {type(error).__name__}"))

    app.add_exception_handler(HTTPException, api_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(Exception, unexpected)


def from_validation(errors: Sequence[Any]) -> ApiError:
    """The first of pydantic's errors, in words, with the name of the field."""
    first = errors[0]
    kind = first["type"]
    if kind == "json_invalid":
        reason = (first.get("ctx") or {}).get("error", first["msg"])
        return ApiError(400, f"the body is not valid JSON: {reason}")
    path = [part for part in first["loc"] if part != "body"]
    name = ".".join(map(str, path)) or None
    message = first["msg"].removeprefix("Value error, ")
    if name is None:
        if kind != "value_error":
            return ApiError(400, "the body must be a JSON object, sent with content-type: application/json")
        cause = (first.get("ctx") or {}).get("error")
        return ApiError(400, message, param=getattr(cause, "param", None))
    if kind == "extra_forbidden":
        return ApiError(400, f"unrecognized request argument: {name}", param=name)
    joint = " " if message.startswith("must ") else ": "
    return ApiError(400, f"{name}{joint}{message}", param=name)
