"""Turns at large bodies and refusals, on a clock that only moves when somebody sleeps or works."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sheaf_runtime.server import body as body_module
from sheaf_runtime.server.body import LARGE, READING, Bodies, Body
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.pace import LONGEST_PAUSE, LOOK_SECONDS, Pace

SHARE = 0.1
MOST = 2**20


class World:
    """A processor that only does what is told of."""

    def __init__(self) -> None:
        self.now = self.used = 0.0
        self.busy = True

    def work(self, seconds: float) -> None:
        self.now += seconds
        self.used += seconds

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)

    def pace(self) -> Pace:
        return Pace(
            lambda: self.busy,
            lambda: SHARE,
            clock=lambda: self.now,
            cpu=lambda: self.used,
            sleep=self.sleep,
        )

    def bodies(self, patience: float = 60) -> Bodies:
        return Bodies(self.pace(), self.pace(), MOST, patience)


@pytest.fixture
def world() -> World:
    return World()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_work_takes_its_share_of_a_core_and_no_more(world: World) -> None:
    async def twenty() -> None:
        pace = world.pace()
        for _ in range(20):
            turn = await pace.take()
            world.work(0.01)
            turn.end()

    run(twenty())
    assert world.used == pytest.approx(0.2)
    assert world.now == pytest.approx(19 * 0.01 / SHARE + 0.01)  # the first waits for nothing


def test_nothing_waits_while_the_engine_is_idle(world: World) -> None:
    world.busy = False

    async def two() -> None:
        pace = world.pace()
        for _ in range(2):
            turn = await pace.take()
            world.work(0.2)
            turn.end()

    run(two())
    assert world.now == pytest.approx(0.4)


def test_who_waits_is_let_in_as_soon_as_the_engine_is_idle(world: World) -> None:
    async def two() -> None:
        pace = world.pace()
        await pace.charge(0.4)
        waiting = asyncio.create_task(pace.take())
        await asyncio.sleep(0)
        world.busy = False
        (await waiting).end()

    run(two())
    assert world.now <= LOOK_SECONDS


def test_turns_are_one_at_a_time_and_in_order(world: World) -> None:
    world.busy = False
    order: list[int] = []

    async def three() -> None:
        pace = world.pace()

        async def one(index: int) -> None:
            turn = await pace.take()
            order.append(index)
            await settle()
            order.append(index)
            turn.end()
            turn.end()  # does nothing: the next one's turn is not ended by it

        await asyncio.gather(*(one(index) for index in range(3)))

    run(three())
    assert order == [0, 0, 1, 1, 2, 2]


def test_a_pause_has_an_end_whatever_the_work_cost(world: World) -> None:
    async def two() -> None:
        pace = world.pace()
        await pace.charge(1000)
        await pace.charge(0)

    run(two())
    assert world.now == pytest.approx(LONGEST_PAUSE)


def test_who_gives_up_waiting_leaves_the_line(world: World) -> None:
    async def three() -> None:
        pace = world.pace()
        turn = await pace.take()
        waiting = asyncio.create_task(pace.take())
        await settle()
        waiting.cancel()
        await settle()
        turn.end()
        await pace.charge(0)

    run(three())


# --- bodies -----------------------------------------------------------------------------------------------


class Client:
    """The ``receive`` of a connection, fed by the test."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def send(self, *pieces: bytes, last: bool = True) -> None:
        for index, piece in enumerate(pieces):
            more = not last or index + 1 < len(pieces)
            self._events.put_nowait({"type": "http.request", "body": piece, "more_body": more})

    def go(self) -> None:
        self._events.put_nowait({"type": "http.disconnect"})

    async def __call__(self) -> dict[str, Any]:
        return await self._events.get()


BIG = b"x" * (LARGE + 1)


async def sent(bodies: Bodies, *pieces: bytes) -> Body:
    client = Client()
    client.send(*pieces)
    return Body(client, bodies)


async def to_the_end(body: Body) -> None:
    while (await body())["more_body"]:
        pass


def test_a_small_body_passes_while_a_large_one_has_the_turn(world: World) -> None:
    async def both() -> None:
        bodies = world.bodies()
        large = await sent(bodies, BIG)
        assert (await large())["body"] == BIG
        small = await sent(bodies, b"{}")
        assert (await small())["body"] == b"{}"
        next_ = await sent(bodies, b"x" * LARGE, b"y")
        assert len((await next_())["body"]) == LARGE  # it shows only now that it is large
        waiting = asyncio.ensure_future(next_())
        await settle()
        assert not waiting.done()
        large.handled()
        assert (await waiting)["body"] == b"y"
        for body in (large, small, next_):
            body.close()
        assert bodies.held == 0

    run(both())


def test_a_single_large_body_waits_for_nobody(world: World) -> None:
    async def one() -> None:
        body = await sent(world.bodies(), BIG)
        await body()
        body.close()

    run(one())
    assert world.now == 0


def test_a_large_body_is_read_to_its_end_before_it_takes_a_turn(world: World) -> None:
    """Else whoever sends one slowly would keep all others waiting."""

    async def two() -> None:
        bodies, slow = world.bodies(), Client()
        slow.send(BIG, last=False)
        first = Body(slow, bodies)
        reading = asyncio.ensure_future(first())
        await settle()
        assert bodies.held == len(BIG)
        quick = await sent(bodies, BIG)
        await quick()
        quick.close()
        slow.send(b"end")
        assert (await reading)["body"] == BIG + b"end"
        first.close()

    run(two())


def test_reading_large_bodies_takes_turns_too(world: World) -> None:
    """Else clients that send much and go before it is handled would cost what they like."""

    async def one() -> None:
        body = await sent(world.bodies(), BIG, *[b"y" * LARGE] * 4)
        await body()
        body.close()

    run(one())
    assert world.now == pytest.approx(4 * LARGE * READING / SHARE)


def test_a_client_that_goes_while_it_waits_makes_way(world: World) -> None:
    async def three() -> None:
        bodies = world.bodies()
        first = await sent(bodies, BIG)
        await first()
        client = Client()
        client.send(BIG)
        second = Body(client, bodies)
        waiting = asyncio.ensure_future(second())
        await settle()
        client.go()
        assert (await waiting)["type"] == "http.disconnect"
        line = await bodies.refusals.take()
        await second.refused()  # nobody hears it, so it keeps nobody waiting
        line.end()
        second.close()
        assert bodies.held == len(BIG)
        first.close()
        third = await sent(bodies, BIG)
        assert (await third())["type"] == "http.request"
        third.close()

    run(three())


def test_behind_a_large_body_the_application_hears_that_the_client_has_gone(world: World) -> None:
    async def one() -> None:
        client = Client()
        client.send(BIG)
        body = Body(client, world.bodies())
        await body()
        client.go()
        assert (await body())["type"] == "http.disconnect"
        body.close()

    run(one())


def test_bodies_that_wait_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "MOST_HELD", 2 * len(BIG))

    async def four() -> None:
        bodies = world.bodies()
        first, second, third = [await sent(bodies, BIG) for _ in range(3)]
        await first()
        waiting = asyncio.ensure_future(second())
        await settle()
        with pytest.raises(ApiError, match="retry") as caught:
            await third()
        assert caught.value.status_code == 429
        assert (caught.value.headers or {}).keys() == {"Connection", "Retry-After"}
        third.close()
        first.handled()
        await waiting
        fourth = await sent(bodies, BIG)
        reading = asyncio.ensure_future(fourth())
        await settle()
        second.close()
        await reading
        fourth.close()
        assert bodies.held == 0

    run(four())


@pytest.mark.parametrize("first", [b"", b"{", BIG])
def test_a_body_that_stops_coming_is_given_up(world: World, first: bytes) -> None:
    """uvicorn#157: it has no limit of its own on how long a body may take."""

    async def one() -> None:
        client, bodies = Client(), world.bodies(patience=0)
        if first:
            client.send(first, last=False)
        body = Body(client, bodies)
        with pytest.raises(ApiError, match="not complete") as caught:
            await to_the_end(body)
        assert caught.value.status_code == 408
        body.close()
        assert bodies.held == 0

    run(one())


def test_a_client_may_listen_for_as_long_as_it_likes(world: World) -> None:
    async def one() -> None:
        client = Client()
        body = Body(client, world.bodies(patience=0))
        client.send(b"{}")
        await body()
        listening = asyncio.ensure_future(body())
        await settle()
        assert not listening.done()
        client.go()
        assert (await listening)["type"] == "http.disconnect"

    run(one())


def refusals(world: World, bodies: Bodies, count: int) -> Callable[[], Coroutine[Any, Any, None]]:
    async def refuse() -> None:
        for _ in range(count):
            body = await sent(bodies, b"{}")
            await body()
            await body.refused()
            body.close()

    return refuse


def test_refusals_take_turns_and_large_bodies_do_not_stand_behind_them(world: World) -> None:
    async def both() -> None:
        bodies = world.bodies()
        held = await bodies.refusals.take()
        waiting = asyncio.create_task(refusals(world, bodies, 1)())
        await settle()
        assert not waiting.done()
        large = await sent(bodies, BIG)
        await large()
        await large.refused()  # had its turn: not twice
        large.close()
        held.end()
        await waiting

    run(both())
