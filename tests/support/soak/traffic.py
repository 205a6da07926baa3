"""Random clients: those who stay and compare, those who leave at any moment, those whose time is up.

What they do comes from public reports of engines that leaked or got stuck: a client that leaves while its
request waits in the queue (llama.cpp#13262), during its prompt (ik_llama.cpp#1020), before the first byte
(llama.cpp#24496), in the middle of a stream (llama.cpp#11720) or as its last token is made (vllm#29987);
one that leaves and takes a neighbour along (ik_llama.cpp#1929); prompts that find other lengths of their
beginning in the prefix cache (vllm#5543) and are cut into other chunks (vllm#55612).
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import aiohttp
from soak.catalogue import Lone

PATIENCE = 120.0  # seconds for an answer; the engine gives thousands of tokens in them
AFTER_REFUSAL = 0.05  # seconds that a client stays away
KINDS = {
    "stays": 8,
    "leaves at once": 1,
    "leaves before the answer": 2,
    "leaves within the stream": 3,
    "has little time": 2,
    "wants several": 2,
    "stops at a token": 2,
    "stops at a text": 1,
    "asks for a grammar": 1,
    "asks for too much": 1,
    "forgets the cache": 0.2,
}


@dataclass
class Traffic:
    """``done`` counts ends by kind; ``failures`` are in words, each with its request."""

    url: str
    known: list[Lone]
    tokens: int  # that each answer is known for
    longest: int  # tokens that a request may have
    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    async def round(self, seed: int, requests: int, clients: int) -> None:
        """``clients`` at a time send ``requests`` requests, the same for the same seed."""
        numbers = iter(range(requests))
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

            async def client() -> None:
                for number in numbers:
                    await self._one(session, seed, number)

            await asyncio.gather(*(client() for _ in range(clients)))

    async def _one(self, session: aiohttp.ClientSession, seed: int, number: int) -> None:
        r = Random(f"{seed} {number}")
        (kind,) = r.choices(list(KINDS), list(KINDS.values()))
        lone = r.choice(self.known)
        body = {
            **lone.fields,
            "max_tokens": r.choice([1, 2, self.tokens // 2, self.tokens, self.tokens]),
            "return_token_ids": True,
            "priority": r.choice([0, 0, 0, -1, 3]),
        }
        if r.random() < 0.5:
            body["logprobs"] = 0
        if r.random() < 0.1:
            body["cache_salt"] = r.choice(["a", "b"])
        name = f"round {seed}, request {number}, {kind}"
        try:
            end = await getattr(self, "_" + kind.replace(" ", "_"))(session, r, lone, body, name)
            self.done[f"{kind}: {end}"] += 1
            if end == "429":
                await asyncio.sleep(AFTER_REFUSAL)
        except TimeoutError:
            self._fail(name, body, f"no answer in {PATIENCE:.0f} s")
        except (aiohttp.ClientError, ValueError, KeyError) as error:
            self._fail(name, body, repr(error))

    def _fail(self, name: str, body: dict[str, Any], problem: str) -> None:
        self.failures.append(f"{name}: {problem}; the request: {json.dumps(body)}")

    # --- those who stay -------------------------------------------------------------------------------

    async def _stays(
        self, session: aiohttp.ClientSession, r: Random, lone: Lone, body: dict[str, Any], name: str
    ) -> str:
        if r.random() < 0.5:
            body["stream"] = True
        status, choices = await self._ask(session, body)
        if status == 429:
            return "429"
        self._expect(name, body, status == 200, f"status {status}")
        for choice in choices:
            self._compare(name, body, lone, choice, {"length"})
        return str(status)

    async def _has_little_time(
        self, session: aiohttp.ClientSession, r: Random, lone: Lone, body: dict[str, Any], name: str
    ) -> str:
        body["timeout"] = r.choice([1e-6, 0.005, 0.05, 0.3])
        if r.random() < 0.5:
            body["stream"] = True
        status, choices = await self._ask(session, body)
        self._expect(name, body, status in (200, 429, 504), f"status {status}")
        for choice in choices:
            self._compare(name, body, lone, choice, {"length", "timeout"})
        return str(status)

    async def _wants_several(
        self, session: aiohttp.ClientSession, r: Random, lone: Lone, body: dict[str, Any], name: str
    ) -> str:
        body["n"] = r.choice([2, 3])
        if r.random() < 0.5:
            body["stream"] = True
        status, choices = await self._ask(session, body)
        self._expect(name, body, status in (200, 429), f"status {status}")
        if status == 200:
            self._expect(name, body, len(choices) == body["n"], f"{len(choices)} choices")
        for choice in choices[: 1 if "seed" in body else None]:  # the others have seeds of their own
            self._compare(name, body, lone, choice, {"length"})
        return str(status)

    async def _stops_at_a_token(
        self, session: aiohttp.ClientSession, r: Random, lone: Lone, body: dict[str, Any], name: str
    ) -> str:
        stop = r.choice(lone.tokens)
        body["stop_token_ids"] = [stop]
        status, choices = await self._ask(session, body)
        self._expect(name, body, status in (200, 429), f"status {status}")
        for choice in choices:
            upto = [*lone.tokens[: body["max_tokens"]], stop].index(stop) + 1
            self._compare(name, body, lone, choice, {"length", "stop"}, min(upto, body["max_tokens"]))
        return str(status)

    async def _stops_at_a_text(
        self, session: aiohttp.ClientSession, r: Random, lone: Lone, body: dict[str, Any], name: str
    ) -> str:
        body |= {"stop": r.choice(["e", "a", "th", " "]), "stream": True}
        status, choices = await self._ask(session, body)
        self._expect(name, body, status in (200, 429), f"status {status}")
        for choice in choices:
            self._compare(name, body, lone, choice, {"length", "stop"})
        return str(status)

    async def _asks_for_a_grammar(
        self, session: aiohttp.ClientSession, r: Random, lone: Lone, body: dict[str, Any], name: str
    ) -> str:
        count = r.randint(1, 5)
        body |= {"prompt": "so many", "structured_outputs": {"regex": f"[0-9]{{{count}}}"}}
        body |= {"max_tokens": count + 1, "ignore_eos": False}
        status, choices = await self._ask(session, body)
        self._expect(name, body, status in (200, 429), f"status {status}")
        for choice in choices:
            text = choice["text"]
            self._expect(
                name, body, text.isdecimal() and len(text) == count, f"{text!r} is not of its grammar"
            )
        return str(status)

    async def _asks_for_too_much(
        self, session: aiohttp.ClientSession, r: Random, lone: Lone, body: dict[str, Any], name: str
    ) -> str:
        status, _ = await self._ask(session, body | {"prompt": [5] * (self.longest + 1)})
        self._expect(name, body, status == 400, f"status {status}")
        return str(status)

    async def _forgets_the_cache(
        self, session: aiohttp.ClientSession, r: Random, lone: Lone, body: dict[str, Any], name: str
    ) -> str:
        async with session.post(f"{self.url}/reset_prefix_cache") as answer:
            self._expect(name, body, answer.status == 200, f"status {answer.status}")
            return str(answer.status)

    # --- those who leave ------------------------------------------------------------------------------

    async def _leaves_at_once(
        self, session: aiohttp.ClientSession, r: Random, lone: Lone, body: dict[str, Any], name: str
    ) -> str:
        """The whole request is sent, and nothing is read."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        content = json.dumps(body | {"stream": r.random() < 0.5}).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(content), content)
        )
        await writer.drain()
        writer.close()
        return "left"

    async def _leaves_before_the_answer(
        self, session: aiohttp.ClientSession, r: Random, lone: Lone, body: dict[str, Any], name: str
    ) -> str:
        """In the queue, within the prompt, or just before the end; a whole answer takes some tens of ms."""
        body["n"] = r.choice([1, 1, 3])
        asked = asyncio.ensure_future(self._ask(session, body))
        done, _ = await asyncio.wait([asked], timeout=r.choice([0.001, 0.01, 0.05, 0.2]))
        if done:
            return str(asked.result()[0])
        asked.cancel()
        await asyncio.wait([asked])
        return "left"

    async def _leaves_within_the_stream(
        self, session: aiohttp.ClientSession, r: Random, lone: Lone, body: dict[str, Any], name: str
    ) -> str:
        events = r.choice([1, 1, 3, 10, body["max_tokens"], body["max_tokens"] + 1])
        async with session.post(f"{self.url}/v1/completions", json=body | {"stream": True}) as answer:
            if answer.status != 200:
                self._expect(name, body, answer.status == 429, f"status {answer.status}")
                return str(answer.status)
            async for line in answer.content:
                events -= line.startswith(b"data: ")
                if not events:
                    answer.close()
                    return "left"
        return "200"

    # --- asking and comparing -------------------------------------------------------------------------

    async def _ask(
        self, session: aiohttp.ClientSession, body: dict[str, Any]
    ) -> tuple[int, list[dict[str, Any]]]:
        """(status, choices); a stream's pieces are put together."""
        async with session.post(f"{self.url}/v1/completions", json=body) as answer:
            if answer.status != 200:
                await answer.read()
                return answer.status, []
            if not body.get("stream"):
                return 200, (await answer.json())["choices"]
            choices: dict[int, dict[str, Any]] = {}
            status = 200
            async for line in answer.content:
                data = line.removeprefix(b"data: ").strip()
                if not data or data == b"[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    status = 504 if event["error"]["code"] == "timeout" else 500
                    continue
                for piece in event["choices"]:
                    whole = choices.setdefault(
                        piece["index"], {"token_ids": [], "text": "", "logprobs": None}
                    )
                    whole["text"] += piece["text"]
                    whole["token_ids"] += piece["token_ids"] or []
                    if piece.get("logprobs"):
                        whole["logprobs"] = whole["logprobs"] or {"token_logprobs": []}
                        whole["logprobs"]["token_logprobs"] += piece["logprobs"]["token_logprobs"]
                    whole["finish_reason"] = piece["finish_reason"]
            return status, list(choices.values())

    def _compare(
        self,
        name: str,
        body: dict[str, Any],
        lone: Lone,
        choice: dict[str, Any],
        reasons: set[str],
        length: int | None = None,
    ) -> None:
        """``length``: tokens that an answer has; the answer's own limit unless given."""
        reason, tokens = choice["finish_reason"], choice["token_ids"]
        self._expect(name, body, reason in reasons, f"finish reason {reason}")
        wanted = body["max_tokens"] if length is None else length
        if reason == "length" or length is not None:
            self._expect(name, body, len(tokens) == wanted, f"{len(tokens)} tokens, not {wanted}")
        logprobs = choice["logprobs"]["token_logprobs"] if choice.get("logprobs") else None
        if problem := lone.broken_by(tokens, logprobs):
            self._fail(name, body, problem)
        self.done["compared"] += 1

    def _expect(self, name: str, body: dict[str, Any], holds: bool, problem: str) -> None:
        if not holds:
            self._fail(name, body, problem)
