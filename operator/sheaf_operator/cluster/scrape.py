"""Reading the runtime's metrics from pods. Bounded in time and number per model: pods that hang or lie hold
no other model up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import aiohttp

from sheaf_operator.cluster.reading import Reading, parse

MAX_BYTES = 2_000_000
PARALLEL = 16  # pods of one model that are asked at the same time
KEEP = 60.0  # seconds that a connection is kept for the next poll


class Scraper:
    """An HTTP session that is shared by all scrapes."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        # The bound is in `read`: one for all would be used up by the hung pods of one model. Certificates
        # name the Service, not the pod, and no secret is sent: they are not checked.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP, ssl=False)
        # Pods are reached directly; a proxy from the environment does not know them.
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=timeout), trust_env=False
        )

    async def close(self) -> None:
        await self._session.close()

    async def read(self, targets: Iterable[tuple[str, str]]) -> dict[str, Reading | str]:
        """For each (pod, URL of its metrics) of one model its reading, or in words why there is none."""
        turns = asyncio.Semaphore(PARALLEL)

        async def one(pod: str, url: str) -> tuple[str, Reading | str]:
            async with turns:
                return pod, await self._one(url)

        return dict(await asyncio.gather(*(one(pod, url) for pod, url in targets)))

    async def _one(self, url: str) -> Reading | str:
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                if response.status != 200:
                    return f"HTTP {response.status}"
                body = await response.content.read(MAX_BYTES)
                # read(n) may return early; the rest is only there while bytes keep coming within the timeout.
                while len(body) < MAX_BYTES and (more := await response.content.read(MAX_BYTES - len(body))):
                    body += more
            if len(body) >= MAX_BYTES:
                return f"more than {MAX_BYTES // 1_000_000} MB of metrics"
            return parse(body.decode())
        except TimeoutError:
            return f"no answer within {self._timeout:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
