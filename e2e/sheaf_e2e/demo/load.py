"""The demo's users: chat requests through the official ``openai`` client, streaming, never retried.

Connections are pooled and kept alive, as a real front end keeps them: the hard case for a scale-down, since
a pooled connection outlives the pod behind it unless the server closes it in time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator

import openai
from sheaf_runtime.bench.load import Outcome, finish, take_line

SUBJECTS = (
    "the sea",
    "a lighthouse",
    "winter",
    "trains",
    "bread",
    "the moon",
    "a garden",
    "old maps",
    "rain",
)
FORMS = ("Write two sentences about", "Tell a short story about", "Explain to a child", "List facts about")


def prompts(seed: int) -> Iterator[str]:
    """An endless stream of different questions; the number keeps prefixes from being shared."""
    rng = random.Random(seed)
    number = 0
    while True:
        number += 1
        yield f"({number}) {rng.choice(FORMS)} {rng.choice(SUBJECTS)}."


async def ask(client: openai.AsyncOpenAI, model: str, prompt: str, max_tokens: int) -> Outcome:
    """One streamed chat completion. Reads the raw event lines, because only they show ``[DONE]``."""
    out = Outcome(scheduled=time.perf_counter(), start=time.perf_counter())
    try:
        async with client.chat.completions.with_streaming_response.create(
            model=model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=max_tokens,
            temperature=0.0,
            stream=True,
            stream_options={"include_usage": True},
        ) as response:
            async for line in response.iter_lines():
                take_line(out, line.encode())
        finish(out)
    except openai.APIError as error:
        out.error = f"{type(error).__name__}: {error}"
    except Exception as error:  # httpx errors inside the body are not wrapped by the client
        out.error = f"{type(error).__name__}: {error!r}"
    out.end = time.perf_counter()
    return out


class OpenLoop:
    """Requests leave at ``rate()`` per second (Poisson), whatever became of the earlier ones."""

    def __init__(self, base_url: str, model: str, max_tokens: int, rate: Callable[[], float]) -> None:
        self.outcomes: list[Outcome] = []
        self.in_flight = 0
        self._client = openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=600)
        self._model, self._max_tokens, self._rate = model, max_tokens, rate

    async def run(self, stop: asyncio.Event) -> None:
        """Send until ``stop`` is set, then wait for every answer that is still under way."""
        rng, questions = random.Random(7), prompts(7)
        async with self._client, asyncio.TaskGroup() as tasks:  # the group ends before the client closes
            stopped = tasks.create_task(stop.wait())
            while not stop.is_set():
                tasks.create_task(self._one(next(questions)))
                await asyncio.wait([stopped], timeout=rng.expovariate(self._rate()))

    async def _one(self, prompt: str) -> None:
        self.in_flight += 1
        try:
            self.outcomes.append(await ask(self._client, self._model, prompt, self._max_tokens))
        finally:
            self.in_flight -= 1
