"""Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

MOST_CHARACTERS = 800
_TYPE = re.compile(r"str|int|float|bool|(dict|list)\[.*|constrained-.*|[A-Z]\w*")
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
    504: "timeout_error",
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
    first = _of_union(errors)
    kind = first["type"]
    if kind == "json_invalid":
        reason = (first.get("ctx") or {}).get("error", first["msg"])
        return ApiError(400, f"the body is not valid JSON: {reason}")
    path = _fields(first)
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


def _of_union(errors: Sequence[Any]) -> Any:
    """The first error. Where a value may be of several types there is one for each: that of the type which it
    comes closest to, or all of them in one."""
    first = errors[0]
    place = _fields(first)
    if len(place) == len(_path(first)):
        return first
    same = [error for error in errors if _fields(error)[: len(place)] == place]
    deepest = max(same, key=lambda error: len(_fields(error)))
    if len(_fields(deepest)) > len(place):
        return deepest
    words = [error["msg"].removeprefix("Input should be ") for error in same]
    return {**first, "msg": "must be " + " or ".join(dict.fromkeys(words))}


def _path(error: Any) -> list[Any]:
    return [part for part in error["loc"] if part != "body"]


def _fields(error: Any) -> list[Any]:
    """The path without pydantic's names for the types of a union. Neither a field of the body itself is one,
    nor a field that nobody knows."""
    path = _path(error)
    last = len(path) - (error["type"] == "extra_forbidden")
    return [
        part
        for index, part in enumerate(path)
        if not (0 < index < last and isinstance(part, str) and _TYPE.fullmatch(part))
    ]
