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
FLAGS += ("--trust-request-chat-template",)
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


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_demanded_call_that_is_cut_off(served: Served, stream: bool, tokens: int) -> None:
    """vllm#53255: ``tool_calls`` as the reason, and none there."""
    body = {"messages": CHAT, "tools": [TOOL], "tool_choice": "required", "max_tokens": tokens}
    answer = post(served, CHATS, **body, stream=stream)
    choices = [e["choices"][0] for e in events(answer)] if stream else answer.json()["choices"]
    assert choices[-1]["finish_reason"] == "length"
    for choice in choices:
        said = choice["delta"] if stream else choice["message"]
        assert said.get("tool_calls") != []


RAISES = "{{ raise_exception('effort ' ~ reasoning_effort ~ ' is unknown; take low') }}"


@pytest.mark.parametrize(
    ("template", "fields", "words"),
    [
        (RAISES, {"reasoning_effort": "high"}, "effort high is unknown; take low"),  # vllm#54017
        ("{{ tools[0].nothing | tojson }}", {"tools": [TOOL]}, "not JSON serializable"),  # sglang#20700
        ("{{ messages[0].content / 2 }}", {}, "cannot render"),
        ("{% for i in range(10**9) %}{{ i }}{% endfor %}", {}, "Range too big"),
    ],
)
def test_what_a_template_refuses_is_a_400(
    served: Served, template: str, fields: dict[str, Any], words: str
) -> None:
    answer = post(served, CHATS, messages=CHAT, chat_template=template, max_tokens=1, **fields)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]["message"]


def test_no_calls_in_an_earlier_message(served: Served) -> None:
    """vllm#13978: templates look at the first of ``tool_calls``; llama.cpp and clients send an empty list."""
    each = "{% if 'tool_calls' in m %}{{ m.tool_calls[0].id + '' }}{% endif %}"
    first = "{% for m in messages %}" + each + "{% endfor %}"
    messages = [*CHAT, {"role": "assistant", "content": "b", "tool_calls": []}, *CHAT]
    answer = post(served, CHATS, messages=messages, chat_template=first + "{{ messages }}", max_tokens=1)
    assert answer.status_code == 200, answer.text


def test_null_in_every_field(served: Served) -> None:
    """ChatDev#344, and clients that write out what they do not set: null is as if it were not there."""
    schema = httpx.get(f"{served.url}/openapi.json").json()["components"]["schemas"]
    for path, name, asked in (
        (COMPLETIONS, "CompletionRequest", {"prompt": "pages"}),
        (CHATS, "ChatCompletionRequest", {"messages": CHAT}),
    ):
        nulls = dict.fromkeys(schema[name]["properties"])
        plain = {**asked, "max_tokens": 3, "temperature": 0}
        answer = post(served, path, **{**nulls, **plain})
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"] == post(served, path, **plain).json()["choices"]
