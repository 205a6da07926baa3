"""Reading the runtime's metrics from pods. Bounded in time: one pod that hangs or lies holds nobody up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import aiohttp

from sheaf_operator.api.names import PORT
from sheaf_operator.cluster.reading import Reading, parse

MAX_BYTES = 2_000_000


class Scraper:
    """An HTTP session that is shared by all scrapes."""

    def __init__(self, timeout: float, parallel: int = 64) -> None:
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._connector = aiohttp.TCPConnector(limit=parallel, keepalive_timeout=15)
        # Pods are reached directly; a proxy from the environment does not know them.
        self._session = aiohttp.ClientSession(
            connector=self._connector, timeout=self._timeout, trust_env=False
        )

    async def close(self) -> None:
        await self._session.close()

    async def read(self, addresses: Iterable[tuple[str, str]]) -> dict[str, Reading | str]:
        """For each (pod, ip) its reading, or in words why there is none."""
        targets = list(addresses)
        results = await asyncio.gather(*(self._one(ip) for _, ip in targets))
        return {pod: result for (pod, _), result in zip(targets, results, strict=True)}

    async def _one(self, ip: str) -> Reading | str:
        host = f"[{ip}]" if ":" in ip else ip
        try:
            async with self._session.get(f"http://{host}:{PORT}/metrics", allow_redirects=False) as response:
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
            return f"no answer within {self._timeout.total:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
