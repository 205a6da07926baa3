"""Which adapters run together, which are in memory, and whose turn it is."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from checked_executor import FULL, CheckedExecutor, Info
from hypothesis import given
from hypothesis import strategies as st
from sheaf_runtime.config import EngineConfig, LoraModule, check_config
from sheaf_runtime.engine.adapter_room import PATIENCE
from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.engine.request import Request
from sheaf_runtime.models.errors import AdapterError, AdapterMissingError
from sheaf_runtime.protocol.messages import Accepted, AddRequest, LoadAdapter, Rejected
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.plan import StepPlan
from sheaf_runtime.worker.slots import Slots


class Executor(CheckedExecutor):
    """Knows what is in memory, and that no step names anything else."""

    def start(self, most: int) -> None:
        self.most, self.loaded, self.reads = most, set[int](), list[int]()
        self.own: dict[int, int] = {}
        self.problems: dict[int, Exception] = {}
        self.together = 0

    def load_adapter(self, id_: int, path: str) -> None:
        self.reads.append(id_)
        if id_ in self.problems:
            raise self.problems[id_]
        self.loaded.add(id_)

    def drop_adapter(self, id_: int) -> None:
        self.loaded.remove(id_)

    def launch(self, plan: StepPlan) -> None:
        self.own |= {new.req_id: new.adapter for new in plan.new if new.adapter is not None}
        mine = {self.own[s.req_id] for s in plan.scheduled if s.req_id in self.own}
        assert mine <= self.loaded
        assert len(mine) <= self.most
        self.together = max(self.together, len(mine))
        super().launch(plan)


class Engine:
    def __init__(self, adapters: int, *, depth: int = 0, blocks: int = 200, **config: Any) -> None:
        self.now = 0.0
        modules = tuple(LoraModule(name=f"a{i}", path=f"/a{i}") for i in range(1, adapters + 1))
        defaults = {"block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16, "enable_lora": True}
        made = EngineConfig(model="none", pipeline_depth=depth, lora_modules=modules, **defaults | config)
        self.executor = Executor(
            Info(num_blocks=blocks, kv_groups=(FULL,), max_model_len=400),
            made.block_size,
            made.max_num_seqs,
            made.max_num_batched_tokens,
        )
        self.executor.start(made.max_loras)
        self.core = EngineCore(self.executor, made, clock=lambda: self.now)
        self.ends: dict[str, str] = {}

    def add(self, name: str, adapter: int | None, *, prompt: int = 3, output: int = 5) -> Request:
        answer = self.core.add(
            b"c",
            AddRequest(
                request_id=name,
                prompt_token_ids=[i % 97 for i in range(prompt)],
                sampling=SamplingParams(seed=adapter or 0, max_tokens=output, ignore_eos=True),
                arrival_time=self.now,
                adapter=adapter,
            ),
        )
        assert isinstance(answer, Accepted), answer
        return self.core._requests[b"c", name]

    def step(self) -> None:
        self.core.take_adapter_answers()
        for output in self.core.step():
            if output.finish_reason:
                self.ends[output.request.request_id] = output.finish_reason
        self.core.check_integrity()
        for thread in threading.enumerate():  # what it reads is read before the next step
            if thread.name == "sheaf-adapter":
                thread.join()

    def drain(self) -> dict[str, str]:
        for _ in range(3000):
            if not self.core.has_requests and not self.core.busy:
                break
            self.step()
        assert not self.core.has_requests
        return self.ends


@given(
    requests=st.lists(
        st.tuples(st.sampled_from([None, 1, 2, 3, 4]), st.integers(1, 30), st.integers(1, 12)), max_size=14
    ),
    most=st.integers(1, 3),
    more=st.integers(0, 2),
    depth=st.sampled_from([0, 1]),
    blocks=st.sampled_from([14, 60]),
    pause=st.integers(0, 3),
)
def test_every_request_ends_with_its_adapter_in_memory(
    requests: list[tuple[int | None, int, int]], most: int, more: int, depth: int, blocks: int, pause: int
) -> None:
    engine = Engine(4, depth=depth, blocks=blocks, max_loras=most, max_cpu_loras=most + more)
    assert len(engine.executor.loaded) <= most + more
    for number, (adapter, prompt, output) in enumerate(requests):
        engine.add(str(number), adapter, prompt=prompt, output=output)
        for _ in range(pause):
            engine.step()
            engine.now += 1.0
            assert len(engine.executor.loaded) <= most + more + 1  # one that is just being read
    ends = engine.drain()
    assert len(ends) == len(requests)
    assert set(ends.values()) <= {"length"}


def test_others_pass_one_that_waits_for_its_adapter_but_not_for_ever() -> None:
    """A busy adapter and the model itself are served on; after a while the place is emptied."""
    engine = Engine(2, max_loras=1, max_cpu_loras=2, max_num_seqs=8)
    first = engine.add("first", 1, output=40)
    engine.step()
    other = engine.add("other", 2)
    base, passes = engine.add("base", None, output=40), engine.add("passes", 1, output=3)
    engine.step()
    assert [r.request_id for r in engine.core.scheduler.running] == ["first", "base", "passes"]
    engine.now += PATIENCE
    late, late_base = engine.add("late", 1), engine.add("late base", None)
    engine.step()
    running = engine.core.scheduler.running
    assert late_base in running
    assert late not in running
    assert other not in running
    stats = engine.core.take_stats()
    assert (stats.running_adapters, stats.waiting_adapters) == (["a1"], ["a1", "a2"])
    engine.drain()
    assert other.first_token_time is not None
    assert first.status is base.status is passes.status is late.status


def test_the_batch_has_as_many_adapters_as_there_are_places() -> None:
    engine = Engine(4, max_loras=3, max_cpu_loras=4)
    for adapter in (1, 2, 3, 4):
        engine.add(str(adapter), adapter)
    engine.drain()
    assert engine.executor.together == 3
    assert engine.executor.reads == [1, 2, 3, 4]


def test_what_left_the_memory_is_read_again_and_holds_up_nobody_else() -> None:
    engine = Engine(2, max_loras=1, max_cpu_loras=1)
    assert engine.executor.loaded == {2}
    gate = threading.Event()
    load = engine.executor.load_adapter
    engine.executor.load_adapter = lambda id_, path: (gate.wait(10), load(id_, path))[1]  # type: ignore[method-assign]
    waits, base = engine.add("waits", 1), engine.add("base", None)
    while "base" not in engine.ends:
        engine.core.take_adapter_answers()
        for output in engine.core.step():
            if output.finish_reason:
                engine.ends[output.request.request_id] = output.finish_reason
    assert waits.first_token_time is None
    assert base.first_token_time is not None
    assert not engine.core.busy  # nothing to be done but to look again in a while
    assert engine.core.awaits_threads
    gate.set()
    assert engine.drain()["waits"] == "length"
    assert engine.executor.loaded == {1}


def test_an_adapter_that_cannot_be_read_again_ends_its_requests_and_no_other() -> None:
    engine = Engine(2, max_loras=1)
    engine.executor.problems[1] = AdapterError("the file has changed")
    engine.add("lost", 1)
    engine.add("other", 2)
    engine.add("base", None)
    assert engine.drain() == {"lost": "error", "other": "length", "base": "length"}
    del engine.executor.problems[1]
    engine.add("again", 1)
    assert engine.drain()["again"] == "length"


@pytest.mark.parametrize("depth", [0, 1])
def test_unloading_lets_requests_finish_and_takes_no_new_ones(depth: int) -> None:
    """SGLang 36894: several answers to one prompt must not keep an adapter for ever."""
    engine = Engine(1, depth=depth)
    for name in ("runs", "too"):
        engine.add(name, 1)
    engine.step()
    engine.core.adapters.unload(1)
    answer = engine.core.add(
        b"c", AddRequest(request_id="new", prompt_token_ids=[1], arrival_time=0.0, adapter=1)
    )
    assert isinstance(answer, Rejected)
    assert answer.reason == "not_found"
    assert engine.drain() == {"runs": "length", "too": "length"}
    engine.core.take_adapter_answers()
    assert engine.executor.loaded == set()
    engine.core.adapters.unload(1)  # unknown by now


@pytest.mark.parametrize("error", [AdapterMissingError("nothing there"), RuntimeError("odd")])
def test_a_broken_adapter_is_told_and_forgotten(error: Exception) -> None:
    engine = Engine(1)
    engine.executor.problems[7] = error
    engine.core.adapters.load(b"c", LoadAdapter(adapter=7, name="n", path="/n"))
    for thread in threading.enumerate():
        if thread.name == "sheaf-adapter":
            thread.join()
    ((client, answer),) = engine.core.take_adapter_answers()
    assert client == b"c"
    assert answer.adapter == 7
    assert answer.problem is not None
    assert str(error) in answer.problem
    assert answer.missing == isinstance(error, AdapterMissingError)
    assert not engine.core.adapters.serves(7)
    assert engine.core.adapters.serves(1)


def test_pages_go_by_the_load_and_not_by_the_name() -> None:
    """vLLM 42125 and 30931, llama.cpp 26207: an adapter that comes again under its name has other keys."""
    engine = Engine(2, max_loras=2)
    roots = {engine.add(str(a), a, prompt=20).root for a in (None, 1, 2)}
    assert len(roots) == 3
    salted = AddRequest(request_id="s", prompt_token_ids=[1], arrival_time=0.0, cache_salt="1")
    engine.core.add(b"c", salted)
    assert engine.core._requests[b"c", "s"].root not in roots
    events = engine.core.record_kv_events()
    engine.drain()
    stored: list[Any] = [event for event in events.take() if event.__class__.__name__ == "BlockStored"]
    assert {(e.lora_id, e.lora_name) for e in stored} == {(None, None), (1, "a1"), (2, "a2")}
    again = engine.add("again", 1, prompt=20)
    engine.drain()
    assert again.cached_tokens == 19


def test_what_makes_no_sense_is_refused_at_start() -> None:
    one = LoraModule(name="a", path="/a")
    configs: list[tuple[dict[str, Any], str]] = [
        ({"lora_modules": (one,)}, "lora_modules needs enable_lora"),
        ({"enable_lora": True, "lora_modules": (one, one)}, "two adapters have the name a"),
        ({"enable_lora": True, "max_loras": 4, "max_cpu_loras": 2}, "max_cpu_loras must be at least 4"),
    ]
    for options, why in configs:
        with pytest.raises(ValueError, match=why):
            check_config(EngineConfig(model="m", **options))


@given(count=st.integers(1, 4), steps=st.lists(st.sets(st.integers(0, 6), max_size=4), max_size=30))
def test_slots_hold_those_used_last(count: int, steps: list[set[int]]) -> None:
    filled: list[int] = []

    def fill(id_: int) -> str:
        filled.append(id_)
        return f"content of {id_}"

    slots: Slots[str] = Slots(count, fill)
    order: list[int] = []  # the definition: the last different ids, by when they were used
    for ids in steps:
        if len(ids) > count:
            continue
        expected = [id_ for id_ in ids if id_ not in order[-count:]]
        filled.clear()
        assert slots.hold(ids) == {id_: f"content of {id_}" for id_ in ids}
        assert sorted(filled) == sorted(expected)
        order = [id_ for id_ in order if id_ not in ids] + slots.ids[-len(ids) :] * bool(ids)
        assert set(slots.ids) == set(order[-count:])
    slots.forget(3)
    assert 3 not in slots.ids
