"""One answer from the endpoint, piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import aiohttp

from sheaf_runtime.endpoint.errors import EndpointError, error_message, one_line, refused, unreachable
from sheaf_runtime.endpoint.events import lines, parse_line, pieces
from sheaf_runtime.endpoint.session import served_models


async def answer(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> AsyncGenerator[tuple[str, str, str | None]]:
    """Thoughts, text and finish reason of each event. Raises ``EndpointError``.

    When it is given up in the middle (Ctrl-C), the connection is closed at once, which is how the server
    hears that it can stop.
    """
    try:
        response = await session.post(f"{url}/v1/chat/completions", json=body)
    except (aiohttp.ClientError, OSError) as error:
        raise unreachable(error, url) from error
    finished = False
    try:
        if response.status != 200:
            raise await _explained(session, url, refused(response.status, await response.read()))
        async for line in lines(response.content):
            event = parse_line(line)
            if not isinstance(event, dict):
                continue
            if event.get("error"):
                raise EndpointError(error_message(event["error"]) or "an error without a message")
            for choice in event.get("choices") or ():
                reason = choice.get("finish_reason")
                finished = finished or reason is not None
                yield *pieces(choice), reason
        if not finished:
            raise EndpointError(f"{url} ended the answer in the middle")
    except (aiohttp.ClientError, OSError) as error:
        raise unreachable(error, url) from error
    except ValueError as error:
        raise EndpointError(
            f"{url} sends what is not an answer of the API: {one_line(str(error))}"
        ) from error
    finally:
        response.close()
        await asyncio.sleep(0)  # the socket is closed by the event loop, which else stands still meanwhile


async def _explained(session: aiohttp.ClientSession, url: str, error: EndpointError) -> EndpointError:
    """With the names that there are, if one is wrong."""
    if error.status != 404:
        return error
    try:
        names = await served_models(session, url)
    except EndpointError:
        return error
    return EndpointError(f"{error} (served: {', '.join(names)})", 404)
