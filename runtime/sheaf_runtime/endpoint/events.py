"""Server-sent events of a streamed answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson

DONE = "[DONE]"


async def lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Without their ends, of any length (aiohttp's own reader gives up at 128 KiB)."""
    rest = b""
    async for block in content.iter_any():
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            yield line.rstrip(b"\r")
    if rest:
        yield rest


def parse_line(line: bytes) -> dict[str, Any] | str | None:
    """An event, ``DONE``, or None for what carries no data: comments (pings of proxies), blank lines, names.

    Raises ``ValueError`` for data that is no JSON object.
    """
    if not line.startswith(b"data:"):
        return None
    data = line[5:].strip()
    if data == b"[DONE]":
        return DONE
    event = orjson.loads(data)
    if not isinstance(event, dict):
        raise ValueError("an event that is no JSON object")
    return event


def pieces(choice: dict[str, Any]) -> tuple[str, str]:
    """Thoughts and text that one choice of an event brings. A field may be missing or null."""
    delta = choice.get("delta") or {}
    thought = delta.get("reasoning") or delta.get("reasoning_content") or ""
    return str(thought), str(delta.get("content") or choice.get("text") or "")
