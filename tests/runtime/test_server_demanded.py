"""Calls that are demanded, through the official client, on a real engine with a tiny random model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from model_folders import byte_level, write_folder
from serving import serving
from tiny_llama import write_tiny_llama

PLACE = {
    "type": "object",
    "properties": {"side": {"$ref": "#/$defs/Side"}},
    "required": ["side"],
    "additionalProperties": False,
    "$defs": {"Side": {"enum": ["left", "right"]}},
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "place", "parameters": PLACE}},
    {"type": "function", "function": {"name": "now"}},
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    tokenizer = byte_level()
    folder = write_folder(tmp_path_factory.mktemp("model"), tokenizer)
    write_tiny_llama(folder, vocab_size=tokenizer.get_vocab_size(), max_len=1024)
    out = tmp_path_factory.mktemp("out")
    with serving(folder, out, "--served-model-name", "tiny", real=True) as server:
        server.wait_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            yield client


def chat(client: openai.OpenAI, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": "hi"}]
    return client.chat.completions.create(
        model="tiny", messages=messages, tools=TOOLS, temperature=1.5, max_tokens=800, **options
    )


def test_a_named_function(client: openai.OpenAI) -> None:
    for choice in chat(client, n=4, tool_choice={"type": "function", "function": {"name": "place"}}).choices:
        (call,) = choice.message.tool_calls
        assert call.function.name == "place"
        jsonschema.validate(json.loads(call.function.arguments), PLACE)
        assert choice.finish_reason == "stop"  # as OpenAI ends a function that was named
        assert choice.message.content is None


def test_one_call_is_required(client: openai.OpenAI) -> None:
    for choice in chat(client, n=8, tool_choice="required", parallel_tool_calls=False).choices:
        (call,) = choice.message.tool_calls
        schema = {"place": PLACE, "now": {"maxProperties": 0}}[call.function.name]
        jsonschema.validate(json.loads(call.function.arguments), schema)
        assert choice.finish_reason == "tool_calls"


def test_calls_are_required(client: openai.OpenAI) -> None:
    chunks = list(chat(client, tool_choice="required", seed=3, stream=True))
    names = [
        call.function.name
        for chunk in chunks
        for call in chunk.choices[0].delta.tool_calls or ()
        if call.function.name is not None
    ]
    assert names
    assert set(names) <= {"place", "now"}
