"""What goes wrong at an endpoint, in one line that says what to change."""

from __future__ import annotations

import os
from typing import Any

import aiohttp
import orjson

LONGEST = 300


class EndpointError(Exception):
    """One line. ``status`` is the HTTP status where there was an answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def refused(status: int, body: bytes) -> EndpointError:
    """An answer that is not 200."""
    words = server_words(body)
    if status in (401, 403):
        words += " (give --api-key, or set SHEAF_API_KEY)"
    return EndpointError(f"HTTP {status}: {words}", status)


def server_words(body: bytes) -> str:
    """The message in an error's body, whoever wrote it."""
    try:
        value: Any = orjson.loads(body)
    except ValueError:
        text = body.decode(errors="replace")
        if "<html" in text[:500].lower():
            return "an HTML page, not an API's answer; is the address right?"
        return one_line(text) or "no message"
    return error_message(value) or one_line(body.decode(errors="replace"))


def error_message(value: Any) -> str:
    """Of OpenAI's form, vLLM's older one, FastAPI's and plain texts; "" if there is none."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, dict):
        for key in ("error", "message", "detail"):
            if words := error_message(value.get(key)):
                return words
    return one_line(str(value)) if isinstance(value, list) and value else ""


def unreachable(error: BaseException, url: str) -> EndpointError:
    """For what aiohttp raises."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        if "WRONG_VERSION" in str(error) or "wrong version" in str(error):
            return EndpointError(f"{url} does not speak TLS; write http://")
        cause: Any = getattr(error, "certificate_error", error)
        why = getattr(cause, "verify_message", None) or one_line(str(error))
        return EndpointError(f"{url} is not trusted: {why}; SSL_CERT_FILE names further authorities")
    if isinstance(error, aiohttp.ClientConnectorError):
        errno = error.os_error.errno
        why = os.strerror(errno) if errno and errno > 0 else error.os_error.strerror or str(error.os_error)
        return EndpointError(f"no server answers at {url}: {why}; is it running, is --base-url right?")
    if isinstance(error, TimeoutError):
        return EndpointError(f"{url} took too long")
    if isinstance(error, aiohttp.InvalidURL):
        return EndpointError(f"{url} is no address of a server")
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | ConnectionError):
        return EndpointError(f"{url} closed the connection before the answer's end")
    return EndpointError(f"{url}: {type(error).__name__}: {one_line(str(error))}")


def one_line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LONGEST else f"{flat[:LONGEST]}..."
