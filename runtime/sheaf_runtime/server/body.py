"""How the bodies of requests are read: no longer than allowed, not for ever, and large ones in turn."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.pace import Pace, Turn

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]

LARGE = 64 * 1024  # bytes or characters: much more than people write, and less than costs anybody's time
MOST_HELD = 256 * 2**20  # bytes of large bodies that are not handled yet
PATIENCE = 60.0  # seconds without a byte of a body that is not complete
RETRY_SECONDS = 5
# What cannot be measured, in seconds: the way of a byte from the socket, of a small request and its answer.
READING, WAY = 1.5e-9, 2e-3


class Bodies:
    """Of all requests. ``held``: bytes of large ones that are read, or wait for their turn."""

    def __init__(self, large: Pace, refusals: Pace, most: int, patience: float = PATIENCE) -> None:
        """``large`` gives turns at bodies beyond ``LARGE``, ``refusals`` at answers that refuse. ``most``:
        bytes of a body; ``patience``: seconds without any."""
        self.large, self.refusals = large, refusals
        self.most, self.patience = most, patience
        self.held = 0

    def too_large(self) -> ApiError:
        return _last(413, f"the body is larger than {self.most} bytes (--max-body-size)")


class Body:
    """The ``receive`` of one request. A body that turns out to be large is read to its end and waits for its
    turn, before the application sees more of it. ``close`` it.

    Raises ``ApiError``: 408 where a client stops in the middle, 413 for a body that is too large, 429 where
    too many large ones are waiting.
    """

    def __init__(self, receive: Receive, bodies: Bodies) -> None:
        self._receive, self._bodies = receive, bodies
        self._complete = self._gone = False
        self._size = self._held = 0
        self._since = time.monotonic()  # what a refusal has cost is counted from here
        self._turn: Turn | None = None
        self._next: asyncio.Future[Event] | None = None  # whatever comes behind the body

    async def __call__(self) -> Event:
        if self._next is not None:
            behind, self._next = self._next, None
            return self._heard(await behind)
        event = await self._read()
        if event["type"] != "http.request" or self._size <= LARGE or self._turn is not None:
            return event
        pieces = [event.get("body", b"")]
        self._hold(self._size)
        while not self._complete:
            event = await self._read()
            if event["type"] != "http.request":
                return event
            pieces.append(event.get("body", b""))
            self._hold(len(pieces[-1]))
            # Who sends more meanwhile is held up by the full buffers of the connection.
            await self._bodies.large.charge(len(pieces[-1]) * READING)
        if gone := await self._take_turn():
            return gone
        return {"type": "http.request", "body": b"".join(pieces), "more_body": False}

    def handled(self) -> None:
        """What is left of the request is the engine's work."""
        if self._turn is not None:
            self._turn.end()
        self._release()
        self._since = time.monotonic()

    async def refused(self) -> None:
        """Returns when the answer may go, which refuses the request. One that nobody hears goes at once."""
        if self._gone:
            return
        if self._turn is None or self._turn.ended:
            await self._bodies.refusals.charge(WAY + time.monotonic() - self._since)
        else:
            self.handled()

    def close(self) -> None:
        self.handled()
        if self._next is not None:
            self._next.cancel()

    async def _read(self) -> Event:
        if self._complete:  # what comes now says that the client has gone, whenever that is
            return self._heard(await self._receive())
        try:
            async with asyncio.timeout(self._bodies.patience):
                event = await self._receive()
        except TimeoutError:
            seconds = f"{self._bodies.patience:g} seconds"
            raise _last(408, f"nothing came for {seconds}, and the body is not complete") from None
        self._since = time.monotonic()
        if event["type"] == "http.request":
            self._size += len(event.get("body", b""))
            if self._size > self._bodies.most:
                raise self._bodies.too_large()
            self._complete = not event.get("more_body", False)
        return self._heard(event)

    def _heard(self, event: Event) -> Event:
        self._gone = self._gone or event["type"] == "http.disconnect"
        return event

    async def _take_turn(self) -> Event | None:
        """The event that the client has gone, if it goes before its turn comes."""
        self._next = asyncio.ensure_future(self._receive())
        taking = asyncio.create_task(self._bodies.large.take())
        try:
            await asyncio.wait({taking, self._next}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not taking.done():
                taking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    (await taking).end()
        if taking.cancelled():
            return await self()
        self._turn = taking.result()
        return None

    def _hold(self, size: int) -> None:
        if self._bodies.held + size > MOST_HELD:
            self._release()
            raise _last(429, "too many large bodies are waiting; retry", {"Retry-After": str(RETRY_SECONDS)})
        self._bodies.held += size
        self._held += size

    def _release(self) -> None:
        self._bodies.held -= self._held
        self._held = 0


def _last(status: int, message: str, headers: dict[str, str] | None = None) -> ApiError:
    """An answer before the body was read: nothing else can come on this connection."""
    return ApiError(status, message, headers={"Connection": "close", **(headers or {})})
