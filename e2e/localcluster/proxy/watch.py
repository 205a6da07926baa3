"""Follow a kind of objects at the API server: one list, then its changes, for as long as it takes."""

import asyncio
import base64
import json
import logging
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

log = logging.getLogger("proxy.watch")

WATCH_S = 300  # then the server ends the watch and the next one begins where it ended
FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 5.0
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=WATCH_S + 30)

Objects = Mapping[tuple[str, str], Mapping[str, Any]]


@dataclass(frozen=True)
class ApiServer:
    """Where the API server is and how to speak to it."""

    url: str
    tls: ssl.SSLContext
    headers: Mapping[str, str] = field(default_factory=dict)


def read_kubeconfig(path: Path) -> ApiServer:
    """The current context's server. Understands certificates and keys (as data or files) and tokens."""
    document = yaml.safe_load(path.read_text())

    def named(kind: str, name: str) -> dict[str, Any]:
        for entry in document.get(f"{kind}s") or ():
            if entry["name"] == name:
                return dict(entry[kind] or {})
        raise ValueError(f"{path}: no {kind} is named {name!r}")

    context = named("context", document.get("current-context", ""))
    cluster, user = named("cluster", context["cluster"]), named("user", context["user"])
    if data := cluster.get("certificate-authority-data"):
        tls = ssl.create_default_context(cadata=base64.b64decode(data).decode())
    elif file := cluster.get("certificate-authority"):
        tls = ssl.create_default_context(cafile=path.parent / file)
    else:
        tls = ssl.create_default_context()
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # the API server's own certificates lack what it asks for
    if cluster.get("insecure-skip-tls-verify"):
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    if file := user.get("client-certificate"):
        tls.load_cert_chain(path.parent / file, path.parent / user["client-key"])
    elif user.get("client-certificate-data"):
        raise ValueError(f"{path}: give the client certificate as a file, not as data")
    headers = {"Authorization": f"Bearer {user['token']}"} if user.get("token") else {}
    return ApiServer(cluster["server"].rstrip("/"), tls, headers)


class _Expired(Exception):
    """The server no longer has the history since our last change: list again."""


async def follow(server: ApiServer, path: str, changed: Callable[[Objects], None]) -> None:
    """Call `changed` with all objects of a kind, at first and after every change, until cancelled.

    `path` is the collection's, as `/api/v1/services`. While the server is away nothing is called, so the last
    objects stand.
    """
    delay = FIRST_DELAY_S
    async with aiohttp.ClientSession(headers=server.headers, timeout=_TIMEOUT) as session:
        while True:
            try:
                async for objects in _list_and_watch(session, server, path):
                    delay = FIRST_DELAY_S
                    changed(objects)
            except _Expired:
                log.info("%s: listing again", path)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                log.warning("%s: %s; again in %.1f s", path, error or type(error).__name__, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, LONGEST_DELAY_S)


async def _list_and_watch(
    session: aiohttp.ClientSession, server: ApiServer, path: str
) -> AsyncIterator[Objects]:
    """All objects, again and again, until the server or its history is gone (an exception)."""
    async with session.get(server.url + path, ssl=server.tls, raise_for_status=True) as response:
        listed = json.loads(await response.read())
    objects = {_key(each): each for each in listed["items"]}
    version = listed["metadata"]["resourceVersion"]
    yield objects
    while True:
        query = {
            "watch": "1",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        async with session.get(server.url + path, params=query, ssl=server.tls) as response:
            if response.status == 410:
                raise _Expired
            response.raise_for_status()
            async for line in _lines(response.content):
                event = json.loads(line)
                kind, changed = event["type"], event["object"]
                if kind == "ERROR":
                    if changed.get("code") == 410:
                        raise _Expired
                    raise ValueError(f"watch failed: {changed.get('message')}")
                version = changed["metadata"]["resourceVersion"]
                if kind == "BOOKMARK":
                    continue
                if kind == "DELETED":
                    objects.pop(_key(changed), None)
                else:
                    objects[_key(changed)] = changed
                yield objects


def _key(each: Mapping[str, Any]) -> tuple[str, str]:
    return each["metadata"]["namespace"], each["metadata"]["name"]


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length (StreamReader's own are limited)."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
