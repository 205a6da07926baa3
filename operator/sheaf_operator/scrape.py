"""Reading the runtime's metrics from pods. Bounded in time: one pod that hangs or lies holds nobody up."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass

import aiohttp

from sheaf_operator.names import PORT
from sheaf_operator.samples import Sample

MAX_BYTES = 2_000_000
MAX_VALUE = 1e15  # no count, no number of bytes is larger: garbage

# Families we read → field. Full parsing costs milliseconds per pod, so only these lines are looked at.
_FAMILIES = {
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_requests_running": "running",
    "vllm:kv_cache_usage_perc": "kv",
    "vllm:cache_config_info": "cache_config",
    "vllm:request_success_total": "finished",
    "sheaf:queued_tokens": "queued_tokens",
    "sheaf:oldest_wait_seconds": "oldest_wait",
    "sheaf:blocks_live": "blocks_live",
    "sheaf:weights_bytes": "weights_bytes",
    "sheaf:max_num_seqs": "slots",
}
_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{[^}]*\})?\s+(\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Reading:
    """One pod's answer. `kv_tokens` and `weights_bytes` are its capacity, `finished` counts the requests that
    have ended since its start; None where not reported.
    """

    sample: Sample
    blocks_live: int = 0
    kv_tokens: int | None = None
    weights_bytes: int | None = None
    finished: int | None = None

    @property
    def burden(self) -> tuple[int, int]:
        """What would be lost or waited for if this pod went: KV blocks in use, then requests."""
        return self.blocks_live, self.sample.running + self.sample.waiting


def parse(text: str) -> Reading:
    """Series of several engines are added up, and the KV use is their mean.

    Raises ValueError when a family that scaling depends on is missing or cannot be true.
    """
    found: dict[str, float] = {}
    engines = 0
    kv_tokens: int | None = None
    for line in text.splitlines():
        match = _LINE.match(line)
        field = _FAMILIES.get(match[1]) if match else None
        if match is None or field is None:
            continue
        if field == "cache_config":
            labels = dict(_LABEL.findall(match[2] or ""))
            if labels.get("block_size", "").isdigit() and labels.get("num_gpu_blocks", "").isdigit():
                kv_tokens = int(labels["block_size"]) * int(labels["num_gpu_blocks"])
            continue
        value = float(match[3])
        most = 1.0 if field == "kv" else MAX_VALUE
        if not 0 <= value <= most:  # nor NaN
            raise ValueError(f"{match[1]} is {match[3]}")
        found[field] = found.get(field, 0.0) + value
        engines += field == "kv"
    missing = [
        name
        for name, field in _FAMILIES.items()
        if field in ("waiting", "running", "kv") and field not in found
    ]
    if missing:
        raise ValueError(f"no {', '.join(missing)} in the metrics")
    sample = Sample(
        waiting=int(found["waiting"]),
        running=int(found["running"]),
        kv=found["kv"] / engines,
        slots=int(found["slots"]) if "slots" in found else None,
        queued_tokens=int(found.get("queued_tokens", 0)),
        oldest_wait=found.get("oldest_wait", 0.0),
    )
    weights = int(found["weights_bytes"]) if "weights_bytes" in found else None
    finished = int(found["finished"]) if "finished" in found else None
    return Reading(sample, int(found.get("blocks_live", 0)), kv_tokens, weights, finished)


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
