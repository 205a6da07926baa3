import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_operator.run.queue import KeyedQueue, Worker


def queue(**more: float) -> KeyedQueue[str]:
    return KeyedQueue(base=1.0, cap=8.0, jitter=lambda: 1.0, **more)


def test_a_burst_is_one_run() -> None:
    q = queue()
    for _ in range(5):
        q.add("a", 0.0)
    assert q.take(0.0) == "a"
    assert q.take(0.0) is None


def test_a_key_that_changes_while_it_runs_runs_again_and_not_at_the_same_time() -> None:
    q = queue()
    q.add("a", 0.0)
    assert q.take(0.0) == "a"
    q.add("a", 0.0)
    q.add("a", 0.0)
    assert q.take(0.0) is None
    q.done("a", 0.0)
    assert q.take(0.0) == "a"
    q.done("a", 0.0)
    assert q.take(0.0) is None


def test_keys_come_in_order() -> None:
    q = queue()
    for key in "abc":
        q.add(key, 0.0)
    assert [q.take(0.0) for _ in range(3)] == ["a", "b", "c"]


def test_failures_back_off_up_to_the_cap_and_success_resets() -> None:
    q = queue()
    now, delays = 0.0, []
    for _ in range(5):
        q.add("a", 0.0)
        q.take(now)
        delays.append(q.fail("a", now))
    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0]
    q.add("a", 0.0)
    q.take(now)
    q.done("a", 0.0)
    q.add("a", 0.0)
    q.take(now)
    assert q.fail("a", now) == 1.0


def test_the_jitter_is_applied() -> None:
    q: KeyedQueue[str] = KeyedQueue(base=1.0, cap=8.0, jitter=lambda: 0.5)
    q.add("a", 0.0)
    q.take(0.0)
    assert q.fail("a", 0.0) == 0.5


def test_a_delayed_key_waits_for_its_time() -> None:
    q = queue()
    q.add_after("a", 5.0, now=10.0)
    assert q.next_due() == 15.0
    assert q.take(14.9) is None
    assert q.take(15.0) == "a"
    assert q.next_due() is None


def test_the_earlier_of_two_delays_counts() -> None:
    q = queue()
    q.add_after("a", 9.0, now=0.0)
    q.add_after("a", 3.0, now=0.0)
    q.add_after("a", 6.0, now=0.0)
    assert q.take(3.0) == "a"
    q.done("a", 0.0)
    assert q.take(100.0) is None


def test_an_event_beats_a_back_off() -> None:
    q = queue()
    q.add("a", 0.0)
    q.take(0.0)
    q.fail("a", 0.0)
    q.add("a", 0.0)
    assert q.take(0.0) == "a"
    q.done("a", 0.0)
    assert q.take(100.0) is None


def test_a_delay_while_it_runs_is_kept() -> None:
    q = queue()
    q.add("a", 0.0)
    q.take(0.0)
    q.done("a", 0.0)
    q.add_after("a", 5.0, now=0.0)
    assert q.take(5.0) == "a"


def runs(events: list[float], takes: float = 0.0) -> list[float]:
    """When the one key that is added at `events` is processed; a run takes so long, the spacing is 1."""
    q = queue(spacing=1.0)
    left, now, started = sorted(events), 0.0, list[float]()
    while (when := min([*left[:1], *filter(None, [q.next_due()])], default=None)) is not None:
        now = max(now, when)
        while left and left[0] <= now:
            q.add("a", left.pop(0))
        while q.take(now) is not None:
            started.append(now)
            now += takes
            while left and left[0] < now:
                q.add("a", left.pop(0))
            q.done("a", now)
    return started


def test_the_first_event_is_not_put_off_and_a_burst_costs_one_run_per_spacing() -> None:
    assert runs([5.0]) == [5.0]
    assert runs([5.0 + n / 1000 for n in range(1000)]) == [5.0, 6.0]
    assert runs([5.0, 5.1, 9.0]) == [5.0, 6.0, 9.0]


def test_a_burst_during_a_run_costs_one_more() -> None:
    assert runs([0.0, 0.1, 0.2, 0.3], takes=0.4) == [0.0, 1.0]
    assert runs([0.0, 0.1, 3.9], takes=4.0) == [0.0, 4.0]


def test_a_wish_to_come_back_within_the_spacing_is_granted() -> None:
    q = queue(spacing=1.0)
    q.add("a", 0.0)
    q.take(0.0)
    q.done("a", 0.0)
    q.add_after("a", 0.5, now=0.0)
    q.add("a", 0.1)
    assert q.take(0.5) == "a"


@given(st.lists(st.floats(0.1, 30), min_size=1, max_size=60), st.floats(0, 3))
def test_bursts_are_bounded_and_no_event_is_left_unseen(events: list[float], takes: float) -> None:
    started = runs(events, takes)
    assert len(started) <= 1 + (started[-1] - started[0]) / max(1.0, takes) + 1e-6
    assert started[0] == min(events)
    for event in events:  # seen by a run that begins after it, as soon as worker and spacing allow
        assert min(s for s in started if s >= event) <= event + max(1.0, takes) + 1e-6


steps = st.lists(
    st.tuples(st.sampled_from(["add", "after", "take", "done", "fail"]), st.sampled_from("abc")), max_size=80
)


@given(steps)
def test_no_key_is_lost_or_run_twice_at_once(script: list[tuple[str, str]]) -> None:
    q = queue()
    now, running, owed = 0.0, [], set[str]()
    for what, key in script:
        now += 0.5
        if what == "add":
            q.add(key, now)
            owed.add(key)
        elif what == "after":
            q.add_after(key, 2.0, now)
            owed.add(key)
        elif what == "take" and (taken := q.take(now)) is not None:
            assert taken not in running
            running.append(taken)
            owed.discard(taken)
        elif what in ("done", "fail") and running:
            ended = running.pop(0)
            if what == "done":
                q.done(ended, now)
            else:
                q.fail(ended, now)
                owed.add(ended)
    for key in running:
        q.done(key, now)
    got = set()
    now += 100
    while (taken := q.take(now)) is not None:
        got.add(taken)
        q.done(taken, now)
    assert got == owed


async def test_workers_process_serially_per_key_and_in_parallel_across_keys() -> None:
    active: set[str] = set()
    most = 0
    runs: list[str] = []
    release = asyncio.Event()
    both = asyncio.Event()
    finished = asyncio.Event()

    async def process(key: str) -> float | None:
        nonlocal most
        assert key not in active
        active.add(key)
        most = max(most, len(active))
        if len(active) == 2:
            both.set()
        await release.wait()
        active.discard(key)
        runs.append(key)
        if len(runs) == 3:
            finished.set()
        return None

    worker = Worker(queue(), process)
    task = asyncio.create_task(worker.run())
    worker.add("a")
    worker.add("b")
    async with asyncio.timeout(5):
        await both.wait()
        worker.add("a")  # while it runs
        release.set()
        await finished.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert sorted(runs) == ["a", "a", "b"]
    assert most == 2


async def test_a_failure_is_retried_and_a_wish_to_come_back_is_kept() -> None:
    seen: list[str] = []
    done = asyncio.Event()

    async def process(key: str) -> float | None:
        seen.append(key)
        if len(seen) == 1:
            raise RuntimeError("first time")
        if len(seen) == 2:
            return 0.001
        done.set()
        return None

    q: KeyedQueue[str] = KeyedQueue(base=0.001, cap=0.001, jitter=lambda: 1.0)
    worker = Worker(q, process)
    task = asyncio.create_task(worker.run())
    worker.add("a")
    async with asyncio.timeout(5):
        await done.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert seen == ["a"] * 3


async def test_cancelling_the_workers_cancels_what_they_do() -> None:
    started = asyncio.Event()

    async def process(key: str) -> float | None:
        started.set()
        await asyncio.Event().wait()
        return None

    worker = Worker(queue(), process)
    task = asyncio.create_task(worker.run())
    worker.add("a")
    async with asyncio.timeout(5):
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(("expected", "told"), [((RuntimeError,), False), ((), True)])
async def test_an_unexpected_error_is_logged_with_its_place(
    expected: tuple[type[Exception], ...], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    failed = asyncio.Event()

    async def process(key: str) -> float | None:
        failed.set()
        raise RuntimeError("boom")

    worker: Worker[str] = Worker(KeyedQueue(base=60), process, expected)
    task = asyncio.create_task(worker.run())
    worker.add("a")
    await failed.wait()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    (record,) = caplog.records
    assert (record.exc_info is not None) == told
