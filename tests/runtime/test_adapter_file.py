"""--adapters-file: what a file names is loaded, replaced, tried again and unloaded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from serving import Served, serving, wait_for
from sheaf_runtime.flags.parser import OptionError
from sheaf_runtime.protocol.messages import AdapterAnswer
from sheaf_runtime.server.adapter_changes import load_adapter, unload_adapter
from sheaf_runtime.server.adapter_file import MAX_MESSAGE, RETRY_MOST_SECONDS, AdapterFile, read_wanted
from sheaf_runtime.server.adapter_names import AdapterNames
from sheaf_runtime.server.options import parse
from tiny_adapters import edit_config, write_adapter


class Core:
    """Loads every folder but those that are ``broken``; ``loaded`` are the ids that it has."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}
        self.loaded: dict[int, str] = {}
        self.asked = 0

    async def load_adapter(self, message: Any) -> AdapterAnswer:
        self.asked += 1
        problem = self.broken.get(message.path)
        if problem is None:
            self.loaded[message.adapter] = message.path
        return AdapterAnswer(adapter=message.adapter, problem=problem)

    def unload_adapter(self, adapter: int) -> None:
        del self.loaded[adapter]


def service_with(core: Core) -> Any:
    """What is asked of a ``Service``."""
    return SimpleNamespace(
        adapters=AdapterNames(["model"], []),
        adapter_changes=asyncio.Lock(),
        model_names=("model",),
        client=core,
    )


class World:
    def __init__(self, path: Path) -> None:
        self.path, self.now, self.core = path, 0.0, Core()
        self.service = service_with(self.core)
        self.file = AdapterFile(self.service, path, lambda: self.now)

    async def want(self, wanted: Mapping[str, str], after: float = 0.0) -> dict[str, str]:
        """One look later: the adapters that are served."""
        self.now += after
        self.path.write_text(json.dumps(wanted))
        await self.file.step()
        return self.served()

    def served(self) -> dict[str, str]:
        return {adapter.name: adapter.path for adapter in self.service.adapters}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "adapters")


async def test_what_is_named_is_had_and_nothing_is_loaded_twice(world: World) -> None:
    assert await world.want({"a": "/a"}) == {"a": "/a"}
    assert await world.want({"a": "/a", "b": "/b"}) == {"a": "/a", "b": "/b"}
    assert world.core.asked == 2
    assert await world.want({"b": "/b"}) == {"b": "/b"}
    assert list(world.core.loaded.values()) == ["/b"]


async def test_another_folder_under_the_same_name_replaces_it(world: World) -> None:
    await world.want({"a": "/a/1"})
    assert await world.want({"a": "/a/2"}) == {"a": "/a/2"}
    assert list(world.core.loaded.values()) == ["/a/2"]


async def test_while_the_new_folder_cannot_be_served_the_one_before_is(world: World) -> None:
    world.core.broken["/a/2"] = "use_dora is not supported"
    await world.want({"a": "/a/1"})
    assert await world.want({"a": "/a/2"}) == {"a": "/a/1"}
    assert world.file.states["a"].message == "a: use_dora is not supported"
    assert await world.want({}) == {}


async def test_a_broken_one_is_tried_less_and_less_often_and_mends(world: World) -> None:
    world.core.broken["/b"] = "No adapter found"
    assert await world.want({"b": "/b", "a": "/a"}) == {"a": "/a"}
    waits: list[float] = []
    last = 0.0
    while len(waits) < 9:
        asked = world.core.asked
        await world.want({"b": "/b", "a": "/a"}, after=1.0)
        if world.core.asked > asked:
            waits.append(world.now - last)
            last = world.now
    assert waits[:3] == [5, 10, 20]
    assert waits[-1] == RETRY_MOST_SECONDS
    world.core.broken.clear()
    assert await world.want({"b": "/b", "a": "/a"}, after=RETRY_MOST_SECONDS) == {"a": "/a", "b": "/b"}
    assert world.file.states["b"].message == ""


async def test_what_others_loaded_is_left_alone(world: World) -> None:
    await load_adapter(world.service, "theirs", "/theirs", replace=False)
    assert await world.want({"theirs": "/mine"}) == {"theirs": "/theirs"}
    assert "already been loaded" in world.file.states["theirs"].message
    assert await world.want({}) == {"theirs": "/theirs"}


async def test_what_others_unloaded_is_loaded_again(world: World) -> None:
    await world.want({"a": "/a"})
    await unload_adapter(world.service, "a")
    assert await world.want({"a": "/a"}) == {"a": "/a"}


async def test_the_models_own_name_is_refused(world: World) -> None:
    assert await world.want({"model": "/a"}) == {}
    assert "the model's own name" in world.file.states["model"].message


async def test_long_words_are_cut(world: World) -> None:
    world.core.broken["/b"] = "x\n" * 1000
    await world.want({"b": "/b"})
    assert len(world.file.states["b"].message) == MAX_MESSAGE


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '"a"'])
async def test_a_file_that_cannot_be_read_changes_nothing(world: World, text: str) -> None:
    await world.want({"a": "/a"})
    world.path.write_text(text)
    await world.file.step()
    world.path.unlink()
    await world.file.step()
    assert world.served() == {"a": "/a"}


def test_an_empty_file_names_none() -> None:
    assert read_wanted("") == read_wanted("\n") == {}


names = st.sampled_from(["a", "b", "c", "model"])
wishes = st.dictionaries(names, st.sampled_from(["/1", "/2", "/broken"]), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(wishes, min_size=1, max_size=6))
async def test_whatever_was_wanted_before_the_last_wish_is_what_there_is(
    tmp_path_factory: pytest.TempPathFactory, history: list[dict[str, str]]
) -> None:
    world = World(tmp_path_factory.mktemp("w") / "adapters")
    await load_adapter(world.service, "c", "/theirs", replace=False)
    world.core.broken["/broken"] = "broken"
    for wanted in history:
        await world.want(wanted)
    world.core.broken.clear()
    served = await world.want(history[-1], after=RETRY_MOST_SECONDS)
    mine = {name: path for name, path in history[-1].items() if name not in ("c", "model")}
    assert served == {**mine, "c": "/theirs"}
    assert sorted(world.core.loaded.values()) == sorted(served.values())
    assert world.file.states.keys() == history[-1].keys()


def test_the_flag_needs_enable_lora() -> None:
    with pytest.raises(OptionError, match="--adapters-file needs --enable-lora"):
        parse(["m", "--adapters-file", "/f"])


@pytest.fixture
def served(tiny_llama: Any, tmp_path: Path) -> Iterator[tuple[Served, Path]]:
    model = tiny_llama()
    write_adapter(tmp_path / "a", model)
    edit_config(write_adapter(tmp_path / "broken", model), use_dora=True)
    file = tmp_path / "adapters"
    file.write_text(json.dumps({"a": str(tmp_path / "a"), "x": str(tmp_path / "broken")}))
    flags = ("--served-model-name", "tiny", "--enable-lora", "--adapters-file", str(file))
    (tmp_path / "out").mkdir()
    with serving(model, tmp_path / "out", *flags, real=True) as server:
        server.wait_ready()
        yield server, file


def models(served: Served) -> set[str]:
    return {row["id"] for row in httpx.get(f"{served.url}/v1/models").json()["data"]}


def test_a_real_server_is_ready_with_them_and_follows_the_file(served: tuple[Served, Path]) -> None:
    server, file = served
    assert models(server) == {"tiny", "a"}
    text = httpx.get(f"{server.url}/metrics").text
    (family,) = (f for f in text_string_to_metric_families(text) if f.name == "sheaf:adapter_info")
    states = {sample.labels["adapter"]: sample.labels for sample in family.samples}
    assert {name: labels["state"] for name, labels in states.items()} == {"a": "ready", "x": "failed"}
    assert "use_dora is not supported" in states["x"]["message"]
    file.write_text(json.dumps({"b": str(file.parent / "a")}))
    wait_for(lambda: models(server) == {"tiny", "b"}, "the file's adapters")
