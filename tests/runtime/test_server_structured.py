"""Structured output through the official client, on a real engine with a tiny random model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import httpx
import openai
import pytest
from model_folders import byte_level, write_folder
from pydantic import BaseModel
from serving import Served, serving
from tiny_llama import write_tiny_llama

FLAGS = ("--served-model-name", "tiny", "--num-gpu-blocks-override", "4000", "--max-num-seqs", "8")


class Point(BaseModel):
    name: Literal["left", "right"]
    size: Literal[1, 2, 3]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    tokenizer = byte_level()
    folder = write_folder(tmp_path_factory.mktemp("model"), tokenizer)
    write_tiny_llama(folder, vocab_size=tokenizer.get_vocab_size(), max_len=512)
    with serving(folder, tmp_path_factory.mktemp("out"), *FLAGS, real=True) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    options: dict[str, Any] = {"max_tokens": 200, "temperature": 1.5} | fields
    return client.completions.create(model="tiny", prompt="the", **options)


def structured(**wanted: Any) -> dict[str, Any]:
    return {"extra_body": {"structured_outputs": wanted}}


def test_a_schema_of_a_completion_as_openai_writes_it(client: openai.OpenAI) -> None:
    schema = Point.model_json_schema()
    format_ = {"type": "json_schema", "json_schema": {"name": "point", "schema": schema, "strict": True}}
    got = complete(client, n=4, extra_body={"response_format": format_})
    for choice in got.choices:
        assert choice.finish_reason == "stop"
        Point.model_validate_json(choice.text)


def test_a_chat_is_parsed_into_a_pydantic_model(client: openai.OpenAI) -> None:
    got = client.chat.completions.parse(
        model="tiny",
        messages=[{"role": "user", "content": "a point"}],
        response_format=Point,
        max_tokens=200,
        temperature=1.5,
    )
    assert isinstance(got.choices[0].message.parsed, Point)


def test_metrics_count_grammars(served: Served, client: openai.OpenAI) -> None:
    complete(client, **structured(regex="x{3}"))
    complete(client, **structured(regex="x{3}"))
    page = httpx.get(f"{served.url}/metrics").text
    counts = dict(re.findall(r"^sheaf:(grammar\w+){.*} (.*)$", page, re.MULTILINE))
    assert float(counts["grammars_compiled_total"]) >= 1
    assert float(counts["grammar_cache_hits_total"]) >= 1
    assert float(counts["grammar_compile_seconds_total"]) > 0


def test_a_streamed_answer_is_the_plain_one(client: openai.OpenAI) -> None:
    wanted = structured(regex="[a-d]{5,20}")
    plain = complete(client, seed=5, **wanted).choices[0].text
    streamed = "".join(part.choices[0].text for part in complete(client, seed=5, stream=True, **wanted))
    assert streamed == plain
    assert re.fullmatch("[a-d]{5,20}", plain)


def test_many_at_once_each_by_its_own(client: openai.OpenAI) -> None:
    def one(i: int) -> str:
        text: str = complete(client, **structured(choice=[f"item {i}", f"item {i}0"])).choices[0].text
        return text

    with ThreadPoolExecutor(12) as pool:
        assert [text.removesuffix("0") for text in pool.map(one, range(1, 10))] == [
            f"item {i}" for i in range(1, 10)
        ]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        (structured(json={"type": "object", "if": {}}), "structured_outputs", "'if' is not held"),
        (structured(grammar="root ::= "), "structured_outputs", "Expect element"),
        (structured(regex="a", choice=["a"]), "structured_outputs", "exactly one"),
        (structured(whitespace_pattern=" "), "structured_outputs", "whitespace_pattern"),
        ({"extra_body": {"guided_json": {}}}, "guided_json", 'write "structured_outputs"'),
    ],
)
def test_what_cannot_be_held_is_a_400(
    client: openai.OpenAI, fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, **fields)
    assert refused.value.param == param
    assert words in refused.value.message
    assert complete(client, **structured(choice=["ok"])).choices[0].text == "ok"


def test_json_object(client: openai.OpenAI) -> None:
    got = complete(client, n=4, max_tokens=400, extra_body={"response_format": {"type": "json_object"}})
    for choice in got.choices:
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.text), dict)
