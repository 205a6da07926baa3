"""Adapters through the real server: chosen by name, loaded and unloaded while others are served."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Served, serving, wait_for
from sheaf_runtime.flags.parser import OptionError
from sheaf_runtime.server.options import parse
from tiny_adapters import edit_config, reference, with_adapter, write_adapter
from transformers import AutoTokenizer

NAME = ("--served-model-name", "tiny", "--num-gpu-blocks-override", "400")
FLAGS = (*NAME, "--enable-lora", "--max-loras", "2")
PROMPT = "A sheaf is a bundle of pages, and the pages of a sheaf are read in the order of the table."


@pytest.fixture(scope="module")
def model(tiny_llama: Callable[..., Path]) -> Path:
    return tiny_llama()


@pytest.fixture(scope="module")
def folders(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: write_adapter(folder / name, model, seed=i) for i, name in enumerate(("a", "b", "c", "d"))}


@pytest.fixture(scope="module")
def served(
    model: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    as_json = f'{{"name": "b", "path": "{folders["b"]}", "base_model_name": "tiny"}}'
    flags = (*FLAGS, "--lora-modules", f"a={folders['a']}", as_json, "--allow-runtime-lora-updating")
    with serving(model, tmp_path_factory.mktemp("out"), *flags, real=True) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{served.url}/v1", timeout=30) as http:
        yield http


def load(http: httpx.Client, name: str, path: Path | str, **more: Any) -> httpx.Response:
    return http.post("/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)} | more)


def unload(http: httpx.Client, name: str) -> httpx.Response:
    return http.post("/unload_lora_adapter", json={"lora_name": name})


def complete(client: openai.OpenAI, model: str, *, tokens: int = 8) -> str:
    made = client.completions.create(
        model=model, prompt=PROMPT, max_tokens=tokens, temperature=0, extra_body={"ignore_eos": True}
    )
    assert made.model == model
    return made.choices[0].text


@pytest.fixture(scope="module")
def expected(model: Path, folders: dict[str, Path]) -> dict[str, str]:
    """What transformers and peft answer."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(PROMPT)["input_ids"]
    made = {"tiny": None, **folders}
    return {n: tokenizer.decode(reference(with_adapter(model, f), ids, 8)[0]) for n, f in made.items()}


def test_requests_of_several_adapters_and_of_none_side_by_side(
    client: openai.OpenAI, expected: dict[str, str]
) -> None:
    names = ["tiny", "a", "b"] * 4
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda name: complete(client, name), names))
    assert answers == [expected[name] for name in names]
    assert len(set(answers)) == 3
    for name in ("a", "tiny", "b"):  # and from the pages that they have left
        assert complete(client, name) == expected[name]


def test_every_way_to_ask(client: openai.OpenAI, http: httpx.Client) -> None:
    chat = client.chat.completions.create(
        model="a", messages=[{"role": "user", "content": "hi"}], n=2, max_tokens=4, temperature=0
    )
    assert chat.model == "a"
    texts = [choice.message.content for choice in chat.choices]
    base = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=4, temperature=0
    )
    assert texts[0] == texts[1] != base.choices[0].message.content
    answer = client.responses.create(model="a", input="hi", max_output_tokens=16, temperature=0)
    assert answer.output_text.startswith(str(texts[0])[:2])
    asked = [{"model": name, "prompt": PROMPT} for name in ("a", "tiny")]
    tokens = [http.post("../tokenize", json=body).json()["tokens"] for body in asked]
    assert tokens[0] == tokens[1]
    chunks = client.completions.create(model="b", prompt=PROMPT, max_tokens=8, temperature=0, stream=True)
    assert {chunk.model for chunk in chunks} == {"b"}


def test_models_lists_adapters_with_their_parent(client: openai.OpenAI, folders: dict[str, Path]) -> None:
    rows = {row.id: row.model_dump() for row in client.models.list()}
    assert (rows["a"]["parent"], rows["a"]["root"]) == ("tiny", str(folders["a"]))
    assert rows["tiny"]["parent"] is None
    assert client.models.retrieve("b").model_dump()["parent"] == "tiny"


def test_loading_and_unloading_while_others_are_served(
    client: openai.OpenAI, http: httpx.Client, folders: dict[str, Path], expected: dict[str, str]
) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has: tiny, a, b"):
        complete(client, "c")
    chunks = client.completions.create(
        model="a", prompt=PROMPT, max_tokens=150, stream=True, temperature=0, extra_body={"ignore_eos": True}
    )
    first = next(iter(chunks))
    answer = load(http, "c", folders["c"])
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'c' added successfully.")
    assert complete(client, "c") == expected["c"]
    answer = load(http, "c", folders["d"])
    assert answer.status_code == 400
    assert "has already been loaded" in answer.json()["error"]["message"]
    assert complete(client, "c") == expected["c"]
    # vLLM 42125: the pages of the weights before are not found.
    assert load(http, "c", folders["d"], load_inplace=True).status_code == 200
    assert complete(client, "c") == expected["d"]
    answer = unload(http, "c")
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'c' removed successfully.")
    with pytest.raises(openai.NotFoundError):
        complete(client, "c")
    assert load(http, "c", folders["c"]).status_code == 200
    assert complete(client, "c") == expected["c"]
    assert unload(http, "c").status_code == 200
    assert [first, *chunks][-1].choices[0].finish_reason == "length"


def test_requests_of_an_adapter_that_is_unloaded_finish(
    client: openai.OpenAI, http: httpx.Client, folders: dict[str, Path], expected: dict[str, str]
) -> None:
    assert load(http, "c", folders["c"]).status_code == 200
    chunks = client.completions.create(
        model="c", prompt=PROMPT, max_tokens=120, stream=True, temperature=0, extra_body={"ignore_eos": True}
    )
    text = next(iter(chunks)).choices[0].text
    assert unload(http, "c").status_code == 200
    with pytest.raises(openai.NotFoundError):
        complete(client, "c")
    rest = list(chunks)
    assert rest[-1].choices[0].finish_reason == "length"
    assert (text + "".join(chunk.choices[0].text for chunk in rest)).startswith(expected["c"])


def test_a_broken_adapter_is_refused_and_hurts_nothing_else(
    client: openai.OpenAI,
    http: httpx.Client,
    model: Path,
    folders: dict[str, Path],
    expected: dict[str, str],
    tmp_path: Path,
) -> None:
    broken = write_adapter(tmp_path / "broken", model)
    edit_config(broken, use_dora=True)
    for name, path, status, why in (
        ("x", broken, 400, "use_dora is not supported"),
        ("x", tmp_path / "nothing", 404, "No adapter found"),
        ("x", "", 400, "must be provided"),
        ("", broken, 400, "must be provided"),
        ("tiny", folders["c"], 400, "the model's own name"),
        ("x,y", folders["c"], 400, "without commas"),
    ):
        answer = load(http, name, path)
        assert answer.status_code == status
        assert why in answer.json()["error"]["message"]
    assert unload(http, "x").status_code == 404
    assert "cannot be found" in unload(http, "x").text
    assert unload(http, "").status_code == 400
    assert complete(client, "a") == expected["a"]
    assert {row.id for row in client.models.list()} == {"tiny", "a", "b"}


def test_more_adapters_than_there_is_memory_for(
    client: openai.OpenAI, http: httpx.Client, folders: dict[str, Path], expected: dict[str, str]
) -> None:
    """vLLM-metal 641: two are in memory, four are served."""
    for name in ("c", "d"):
        assert load(http, name, folders[name]).status_code == 200
    names = ["a", "b", "c", "d", "tiny"] * 3
    with ThreadPoolExecutor(15) as pool:
        assert list(pool.map(lambda name: complete(client, name), names)) == [expected[n] for n in names]
    for name in ("c", "d"):
        assert unload(http, name).status_code == 200


def test_lora_requests_info(served: Served, client: openai.OpenAI) -> None:
    def labels() -> dict[str, str]:
        text = httpx.get(f"{served.url}/metrics").text
        (family,) = (f for f in text_string_to_metric_families(text) if f.name == "vllm:lora_requests_info")
        (sample,) = family.samples
        assert sample.value > 1e9
        return sample.labels

    idle = {"max_lora": "2", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    wait_for(lambda: labels() == idle, "an idle engine")
    with client.completions.create(
        model="a", prompt=PROMPT, max_tokens=220, stream=True, extra_body={"ignore_eos": True}
    ) as chunks:
        next(iter(chunks))
        wait_for(lambda: labels()["running_lora_adapters"] == "a", "a running adapter")
    wait_for(lambda: labels() == idle, "an idle engine")


def test_a_server_that_was_not_told_to_loads_nothing_while_it_runs(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, *FLAGS, fake={}) as server:
        server.wait_ready()
        body = {"lora_name": "a", "lora_path": "/a"}
        for route, sent in (("load_lora_adapter", body), ("unload_lora_adapter", {"lora_name": "a"})):
            answer = httpx.post(f"{server.url}/v1/{route}", json=sent)
            assert answer.status_code == 404
            assert "--allow-runtime-lora-updating" in answer.json()["error"]["message"]


def test_a_server_does_not_start_with_a_broken_adapter(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, *FLAGS, "--lora-modules", f"a={tmp_path}", real=True) as server:
        assert server.wait_exit() == 2
        assert "--lora-modules a: No adapter found" in server.output()


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--lora-modules", "a=/a"], "--lora-modules needs --enable-lora"),
        (["--enable-lora", "--lora-modules", "a"], "must be NAME=FOLDER"),
        (["--enable-lora", "--lora-modules", '{"name": "a"}'], "missing required field"),
        (["--enable-lora", "--lora-modules", "a=/a", "a=/b"], "two adapters have the name a"),
        (["--enable-lora", "--lora-modules", "m=/a"], "m is the model's own name"),
        (["--enable-lora", "--max-loras", "3", "--max-cpu-loras", "2"], "--max-cpu-loras must be at least 3"),
        (["--allow-runtime-lora-updating"], "needs --enable-lora"),
    ],
)
def test_flags_that_make_no_sense(flags: list[str], why: str) -> None:
    with pytest.raises(OptionError, match=why):
        parse(["m", *flags])
