"""Inputs of bug reports of 2026 about OpenAI-compatible servers, each with its right answer.

Reports are named as repository#number; what is right comes from OpenAI's documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Served, serving

FLAGS = ("--dtype", "float32", "--num-gpu-blocks-override", "300", "--max-num-seqs", "8")
CHAT = [{"role": "user", "content": "pages"}]
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(tiny_llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tiny_llama(max_position_embeddings=512)
    with serving(folder, tmp_path_factory.mktemp("out"), *FLAGS, real=True) as server:
        server.wait_ready()
        yield server


def post(served: Served, path: str, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return httpx.post(served.url + path, json=body, headers=headers, timeout=60)


def events(answer: httpx.Response) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_offsets_of_an_echo_in_a_stream(served: Served) -> None:
    """vllm#47815: behind the first chunk they were short by the prompt."""
    body = {"prompt": "pages of a sheaf", "max_tokens": 8, "echo": True, "logprobs": 1, "temperature": 0}
    whole = post(served, COMPLETIONS, **body).json()["choices"][0]
    parts = [e["choices"][0] for e in events(post(served, COMPLETIONS, **body, stream=True))]
    assert "".join(part["text"] for part in parts) == whole["text"]
    for field in ("tokens", "text_offset"):
        streamed = [value for part in parts if part["logprobs"] for value in part["logprobs"][field]]
        assert streamed == whole["logprobs"][field]


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


@pytest.mark.parametrize("path", [COMPLETIONS, CHATS])
@pytest.mark.parametrize(
    "wanted",
    [
        {"type": "json_schema"},  # sglang#28090: a status of 500
        {"type": "json_schema", "schema": {"type": "object"}},  # llama.cpp#28697: free text
        form({"type": "string", "pattern": "^(hello$"}),  # llama.cpp#19051: free text
        form({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}),
        form({"type": "wrong"}),
    ],
)
def test_an_output_that_cannot_be_held_is_refused(served: Served, path: str, wanted: dict[str, Any]) -> None:
    asked = {"messages": CHAT} if path == CHATS else {"prompt": "pages"}
    answer = post(served, path, **asked, response_format=wanted, max_tokens=4)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("response_format")


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        # vllm#43016: what parses as JSON and is no conversation
        (CHATS, {"messages": []}),
        (CHATS, {"messages": [*CHAT, {"role": "assistant", "tool_calls": [{"id": "a"}]}]}),
        (CHATS, {"messages": [*CHAT, {"role": "assistant", "tool_calls": "f"}]}),
        (CHATS, {"messages": [*CHAT, {"role": "assistant", "tool_calls": [{**CALL, "function": "f"}]}]}),
        (CHATS, {"messages": CHAT, "n": 10**9}),
        (COMPLETIONS, {"prompt": []}),
        (COMPLETIONS, {"prompt": [[]]}),
        # vllm#17038
        ("/tokenize", {"messages": []}),
        ("/tokenize", {}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [10**9]}),
        ("/detokenize", {"tokens": ["1"]}),
        ("/v1/responses", {"input": []}),
        ("/v1/responses", {"input": [{"type": "function_call_output", "call_id": "none"}]}),
    ],
)
def test_no_status_of_500_and_no_answer(served: Served, path: str, body: dict[str, Any]) -> None:
    answer = post(served, path, **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]
    assert served.status("/health") == 200


def test_a_header_changes_no_status(served: Served) -> None:
    """llama.cpp#25605: with a client's header what is invalid was a status of 500 in plain text."""
    headers = {"X-Conversation-Id": "a b"}
    answer = post(served, CHATS, headers, messages=CHAT, temperature="")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "temperature"


def test_fields_that_clients_require(served: Served) -> None:
    """JamePeng/llama-cpp-python#113: without ``refusal`` it is no message to a strict client;
    xinference#5245: offsets count from the beginning of the text."""
    message = post(served, CHATS, messages=CHAT, max_tokens=2).json()["choices"][0]["message"]
    assert message["refusal"] is None
    made = post(served, COMPLETIONS, prompt="pages", max_tokens=4, logprobs=0).json()["choices"][0]
    assert made["logprobs"]["text_offset"][0] == 0
