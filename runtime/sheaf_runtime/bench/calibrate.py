"""How many tokens a word of ours is to a server, and how many its chat template adds.

Measured, so that prompts have the length that was asked for without a copy of the model's tokenizer.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import aiohttp

from sheaf_runtime.bench.datasets import WORDS
from sheaf_runtime.bench.load import Job, Target, send
from sheaf_runtime.endpoint.errors import EndpointError

SHORT, LONG = 8, 72  # words


@dataclass(frozen=True)
class Scale:
    words_per_token: float
    overhead: float  # tokens


async def measure(session: aiohttp.ClientSession, target: Target) -> Scale:
    """Two requests of one token each. A word is a token where the server does not count.

    Raises ``EndpointError``.
    """
    rng, counts = random.Random(0), []
    for length in (SHORT, LONG):
        job = Job(" ".join(rng.choices(WORDS, k=length)), 1)
        outcome = await send(session, target, job, time.perf_counter())
        if not outcome.good:
            raise EndpointError(outcome.error or "no answer")
        counts.append(outcome.prompt_tokens)
    per_word = (counts[1] - counts[0]) / (LONG - SHORT)
    if per_word <= 0:
        return Scale(1.0, 0.0)
    return Scale(1 / per_word, counts[0] - SHORT * per_word)
