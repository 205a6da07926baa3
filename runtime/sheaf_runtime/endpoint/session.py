"""Connections to an endpoint, and what it serves."""

from __future__ import annotations

import aiohttp
import orjson

from sheaf_runtime.endpoint.address import is_local
from sheaf_runtime.endpoint.errors import EndpointError, refused, unreachable

CONNECT_SECONDS = 10.0


def open_session(
    url: str, key: str | None = None, *, timeout: float | None = None, headers: dict[str, str] | None = None
) -> aiohttp.ClientSession:
    """Pooled keep-alive connections without a cap; nothing is ever retried. ``timeout`` is for a whole
    request. Proxies of the environment are used, except for this machine, which they cannot reach."""
    sent = {"Authorization": f"Bearer {key}"} if key else {}
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_SECONDS),
        headers=sent | (headers or {}),
        trust_env=not is_local(url),
    )


async def served_models(session: aiohttp.ClientSession, url: str) -> list[str]:
    """Raises ``EndpointError``, also for what is no model server."""
    try:
        async with session.get(f"{url}/v1/models") as response:
            body = await response.read()
    except (aiohttp.ClientError, OSError) as error:
        raise unreachable(error, url) from error
    if response.status != 200:
        raise refused(response.status, body)
    try:
        names = [str(entry["id"]) for entry in orjson.loads(body)["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise EndpointError(
            f"{url}/v1/models lists no models; is this an OpenAI-compatible server?"
        ) from error
    if not names:
        raise EndpointError(f"{url} serves no model")
    return names
