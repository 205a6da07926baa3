"""One pod's metrics, read and judged. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    """One replica's load. `kv` is the share of its KV blocks in use, `slots` how many sequences it runs at
    most; `finished` and `begun` count the requests that have ended and begun to run since its last reading
    (None: not known).
    """

    waiting: int
    running: int
    kv: float
    slots: int | None = None
    queued_tokens: int = 0
    oldest_wait: float = 0.0
    finished: int | None = None
    begun: int | None = None


ROUNDING = 1e-6  # by which a full cache may be more than full
MAX_VALUE = 1e15  # no count, no number of bytes is larger: garbage
# Families we read → field. They are searched for: a pod has hundreds of lines besides, a bad one a megabyte.
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
    "sheaf:adapter_info": "adapter",
}


# What follows a name: labels, whose values may hold any character, and the value.
_SERIES = re.compile(r'(\{(?:[^"}\n]|"(?:[^"\\\n]|\\.)*")*\})?[ \t]+(\S+)')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
MOST_ADAPTERS = 100  # a pod that names more is not believed


@dataclass(frozen=True)
class AdapterReading:
    """What became of an adapter in one pod; `message` says why it failed."""

    path: str
    ready: bool
    message: str = ""


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
    adapters: Mapping[str, AdapterReading] = field(default_factory=dict)

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
    adapters: dict[str, AdapterReading] = {}
    for name, labels_text, text_value in _series(text):
        family = _FAMILIES[name]
        if family == "adapter":
            if len(adapters) < MOST_ADAPTERS:
                adapters |= _adapter(labels_text)
            continue
        if family == "cache_config":
            labels = dict(_LABEL.findall(labels_text))
            if labels.get("block_size", "").isdigit() and labels.get("num_gpu_blocks", "").isdigit():
                kv_tokens = int(labels["block_size"]) * int(labels["num_gpu_blocks"])
            continue
        value = float(text_value)
        most = 1.0 + ROUNDING if family == "kv" else MAX_VALUE
        if not 0 <= value <= most:  # nor NaN
            raise ValueError(f"{name} is {text_value}")
        found[family] = found.get(family, 0.0) + (min(value, 1.0) if family == "kv" else value)
        engines += family == "kv"
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
    return Reading(sample, int(found.get("blocks_live", 0)), kv_tokens, weights, finished, adapters)


def _adapter(labels_text: str) -> dict[str, AdapterReading]:
    """One adapter by its name; nothing where a label is missing."""
    labels = {
        key: _ESCAPED.sub(lambda found: "\n" if found[1] == "n" else found[1], value)
        for key, value in _LABEL.findall(labels_text)
    }
    if not {"adapter", "path", "state"} <= labels.keys():
        return {}
    ready = labels["state"] == "ready"
    return {labels["adapter"]: AdapterReading(labels["path"], ready, labels.get("message", ""))}


def _series(text: str) -> Iterator[tuple[str, str, str]]:
    """(family, labels, value) of the families that we read."""
    text = "\n" + text
    for name in _FAMILIES:
        start = "\n" + name
        at = text.find(start)
        while at >= 0:
            if match := _SERIES.match(text, at + len(start)):
                yield name, match[1] or "", match[2]
            at = text.find(start, at + 1)
