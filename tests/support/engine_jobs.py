"""Random requests for an engine whose device is ``CheckedExecutor``."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from checked_executor import FULL
from sheaf_runtime.protocol.messages import AddRequest
from sheaf_runtime.protocol.pooling import PoolingParams
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.plan import KVGroup

GROUPS = [
    (FULL,),
    (FULL, KVGroup(kind="window", layers=(1,), page_bytes=1, window=5)),
    (KVGroup(kind="window", layers=(0,), page_bytes=1, window=9),),
    (
        KVGroup(kind="window", layers=(0,), page_bytes=1, window=3),
        FULL,
        KVGroup(kind="window", layers=(1,), page_bytes=1, window=8),
    ),
    (FULL, KVGroup(kind="chunk", layers=(1,), page_bytes=1, chunk=8)),
]


@dataclass
class Job:
    message: AddRequest
    arrives: int  # before this turn of the loop
    aborted: int | None
    got: list[int] = field(default_factory=list)
    vector: bytes | None = None
    reason: str | None = None
    accepted: bool = False


def random_jobs(r: Random) -> list[Job]:
    """Many that overlap in time. Prompts share beginnings, some are equal, so that prefixes are hit."""
    stem = [r.randrange(97) for _ in range(20)]
    made = []
    grows = r.random() < 0.4  # outputs much longer than prompts: what preemption comes from
    for i in range(r.randint(2, 12)):
        arrives = r.choice([0, 0, r.randint(0, 40)])
        message = random_message(r, i, float(arrives), stem, grows=grows)
        aborted = r.choice([None, None, None, arrives + r.randint(0, 40)])
        made.append(Job(message, arrives, aborted))
    return made


def random_message(r: Random, number: int, arrival: float, stem: list[int], *, grows: bool) -> AddRequest:
    """Request ``number``, which is its seed too. ``grows``: its output is much longer than its prompt."""
    prompt = stem[: r.choice([0, 0, 4, 8, 11, 16, 20])]
    prompt += [r.randrange(97) for _ in range(r.choice([0, 1, 3, 12]))]
    prompt = prompt[-3:] if grows else prompt
    sampling = SamplingParams(
        seed=number,
        max_tokens=r.choice([30, 40, 50] if grows else [1, 2, 7, 20, 30, 40]),
        stop_token_ids=r.choice([(), (), (3,), (9, 30, 31, 60)]),
        ignore_eos=grows or r.random() < 0.5,
    )
    return AddRequest(
        request_id=str(number),
        prompt_token_ids=prompt or [1],
        sampling=sampling,
        arrival_time=arrival,
        priority=r.choice([0, 0, 0, -1, 3]),
        cache_salt=r.choice([None, None, "x"]),
        after=str(r.randrange(number)) if number and r.random() < 0.2 else None,
        pooling=PoolingParams() if r.random() < 0.2 else None,
        timeout=r.choice([None, None, None, None, 0.0, float(r.randint(1, 60))]),
    )
