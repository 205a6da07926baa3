"""Requests whose answer is known: what the server says when nothing else is in it.

A catalogue is drawn from a seed. Its prompts share beginnings, so that prefixes are hit; each is answered
greedily or from a seed, by a server with one seat and without a prefix cache, one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import aiohttp


@dataclass(frozen=True)
class Lone:
    """``tokens`` with the log-probability of each, as the API writes them."""

    fields: dict[str, Any]  # of the request, but for its length
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    def broken_by(self, tokens: list[int], logprobs: list[float] | None) -> str | None:
        """How an answer, or the beginning of one, differs in a single bit; None if it does not."""
        count = len(tokens)
        if tuple(tokens) != self.tokens[:count]:
            return f"tokens {tokens} are not {list(self.tokens[:count])}"
        if logprobs is not None and tuple(logprobs) != self.logprobs[:count]:
            return f"log-probabilities {logprobs} are not {list(self.logprobs[:count])}"
        return None


def draw_requests(r: Random, count: int, *, vocab: int, longest: int) -> list[dict[str, Any]]:
    stems = [[r.randrange(3, vocab) for _ in range(longest)] for _ in range(3)]
    made = []
    for number in range(count):
        shared = r.choice([0, 0, 16, 40, 100, longest // 2, longest - 20])
        own = r.choice([1, 2, 7, 19, 60, 150])
        prompt = r.choice(stems)[:shared] + [r.randrange(3, vocab) for _ in range(own)]
        fields: dict[str, Any] = {"prompt": prompt[-longest:], "temperature": 0.0, "ignore_eos": True}
        if number % 4 == 3:
            fields |= {"temperature": 1.0, "seed": r.randrange(1 << 31)}
        made.append(fields)
    return made


async def answer_alone(url: str, requests: list[dict[str, Any]], tokens: int) -> list[Lone]:
    """The answers of ``tokens`` tokens, each asked for after the other."""
    known = []
    async with aiohttp.ClientSession() as session:
        for fields in requests:
            body = {**fields, "max_tokens": tokens, "logprobs": 0, "return_token_ids": True}
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                answer.raise_for_status()
                (choice,) = (await answer.json())["choices"]
            logprobs = tuple(choice["logprobs"]["token_logprobs"])
            known.append(Lone(fields, tuple(choice["token_ids"]), logprobs))
    return known
