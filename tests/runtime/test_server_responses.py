"""``/v1/responses`` through the official client; the "model" says what the user says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from model_folders import byte_level, write_folder
from serving import Served, serving
from sheaf_runtime.server.responses.request import ResponsesRequest

ECHO = (
    '{#- <tool_call> "arguments" -#}'
    "{{ messages[-1]['content'] }}{{ eos_token }}"  # what comes behind the end is not said
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
)
TOOL: Any = {
    "type": "function",
    "name": "now",
    "parameters": {"type": "object", "properties": {}},
    "strict": False,
}
CALL = '<tool_call>\n{"name": "now", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_folder(tmp_path_factory.mktemp("model"), byte_level(), chat_template=ECHO)
    names = ("--served-model-name", "m", "--reasoning-parser", "qwen3")
    with serving(folder, tmp_path_factory.mktemp("out"), *names, fake={}) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_text(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="m", input="Good day", metadata={"a": "b"}, temperature=0.5)
    assert answer.output_text == "Good day"
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    assert (answer.metadata, answer.temperature) == ({"a": "b"}, 0.5)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.output[0].type == "message"


def test_thoughts_text_and_calls_are_items(client: openai.OpenAI) -> None:
    """vllm#43395: thoughts were neither told nor counted."""
    answer = client.responses.create(model="m", input=f"<think>hm</think>So\n{CALL}", tools=[TOOL])
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
    thoughts, _, call = answer.output
    assert thoughts.type == "reasoning"
    assert thoughts.content is not None
    assert thoughts.content[0].text == "hm"
    assert call.type == "function_call"
    assert (call.name, call.arguments, call.status) == ("now", '{"a": 1}', "completed")
    assert answer.usage is not None
    assert answer.usage.output_tokens_details.reasoning_tokens > 0


EVENTS = [
    *("response.created", "response.in_progress"),
    *("response.output_item.added", "response.content_part.added", "response.reasoning_text.delta"),
    *("response.reasoning_text.done", "response.content_part.done", "response.output_item.done"),
    *("response.output_item.added", "response.content_part.added", "response.output_text.delta"),
    *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
    *("response.output_item.added", "response.function_call_arguments.delta"),
    *("response.function_call_arguments.done", "response.output_item.done", "response.completed"),
]


def test_events_in_order(client: openai.OpenAI) -> None:
    """vllm#24938: parts of thoughts began and were never done."""
    stream = client.responses.create(
        model="m", input=f"<think>hm</think>So\n{CALL}", tools=[TOOL], stream=True
    )
    events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert [
        kind for i, kind in enumerate(kinds) if kind != kinds[i - 1] or not kind.endswith("delta")
    ] == EVENTS
    last: Any = events[-1]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.id for item in done] == [item.id for item in last.response.output]
    assert [item.to_dict() for item in done] == [item.to_dict() for item in last.response.output]


def test_the_client_puts_a_stream_together(client: openai.OpenAI) -> None:
    with client.responses.stream(model="m", input=f"So\n{CALL}", tools=[TOOL]) as stream:
        answer = stream.get_final_response()
    assert answer.output_text == "So\n"
    assert answer.output[1].to_dict()["arguments"] == '{"a": 1}'


def test_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="m", input="Good day", max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model="m", input="Good day", max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete"


def test_items_become_messages(client: openai.OpenAI) -> None:
    first = client.responses.create(model="m", input=f"<think>hm</think>So\n{CALL}", tools=[TOOL])
    call: Any = first.output[-1]
    answer = client.responses.create(
        model="m",
        instructions="Be kind.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            *(item.to_dict() for item in first.output),  # type: ignore[misc]
            {"type": "function_call_output", "call_id": call.call_id, "output": "noon"},
        ],
        tools=[TOOL],
        store=True,
    )
    assert answer.output_text == "noon"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"type": "web_search_call"}]}, "input.0.type"),
        (
            {"input": [{"type": "custom_tool_call", "call_id": "a", "name": "f", "input": "x"}]},
            "input.0.type",
        ),
        ({"input": [{"type": "computer_call", "call_id": "a", "action": {}}]}, "input.0.type"),
        ({"input": [{"type": "reasoning", "summary": "hm"}]}, "input.0.summary"),
        ({"input": [{"type": "reasoning", "content": [{"text": 5}]}]}, "input.0.content"),
        ({"input": [{"type": "reasoning", "content": [5]}]}, "input.0.content"),
        ({"input": [{"type": "reasoning", "content": 5}]}, "input.0.content"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"id": "msg_1"}]}, "input.0"),
        ({"input": [{"type": "message"}]}, "input.0.role"),
        ({"input": [{"type": ["message"]}]}, "input.0.type"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input.0.call_id"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": {}}]}, "input.0.arguments"),
        ({"input": [{"type": "function_call_output", "output": "a", "call_id": 5}]}, "input.0.call_id"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"verbosity": "tiny"}}, "text.verbosity"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"input": [{"role": "alien", "content": "x"}]}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "name": ""}]}, "tools.0.name"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"input": "x" * 100_000}, "input"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_bad_requests(served: Served, change: dict[str, Any], param: str) -> None:
    response = httpx.post(f"{served.url}/v1/responses", json={"input": "hi", **change})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


# --- what public reports brought --------------------------------------------------------------------------


def say(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "input_text", "text": text}]}


CALLED: Any = {"type": "function_call", "name": "now", "call_id": "call_1", "arguments": "{}"}
RESULT: Any = {"type": "function_call_output", "call_id": "call_1", "output": "noon"}


def allowed(*names: str, mode: str = "auto") -> dict[str, Any]:
    tools = [{"type": "function", "name": name} for name in names]
    return {"type": "allowed_tools", "mode": mode, "tools": tools}


@pytest.mark.parametrize(
    "items",
    [
        # MiaAI-Lab#138, langchain#34751, langchain#32557: texts of the assistant without ids and annotations
        [
            {"role": "system", "content": "Be kind."},
            {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        ],
        # litellm#13420: fields that are null
        [{"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": None, "content": None}],
        [{"id": "fc_1", "status": None, **CALLED}, {"id": None, "status": None, **RESULT}],
        [CALLED, RESULT | {"output": [{"type": "input_text", "text": "noon"}]}],
        [{"type": "message", "role": "developer", "content": "Be kind."}],
        [{"type": None, "id": None, "role": "assistant", "content": "a", "status": None}],
    ],
    ids=["output_text", "reasoning of nothing", "nulls of a call", "a result in parts", "developer", "null"],
)
def test_items_that_clients_send_back(served: Served, items: list[dict[str, Any]]) -> None:
    body = {"model": "m", "input": [*items, say("hello")], "tools": [TOOL]}
    response = httpx.post(f"{served.url}/v1/responses", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["output"][0]["content"][0]["text"] == "hello"


def test_thoughts_of_nothing_are_no_message() -> None:
    """vllm#45273, vllm#33089: what agents send back with each turn, thoughts that are encrypted among it; a
    turn of its own would be made of those."""
    nothing: Any = {"type": "reasoning", "summary": [], "content": None, "encrypted_content": "gAAAA"}
    said: Any = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    items = [say("hi"), nothing, CALLED, nothing, RESULT, said, {"role": "assistant", "content": "noon"}]
    messages = ResponsesRequest.model_validate({"input": [*items, nothing, say("bye")]}).chat().messages
    assert [message.role for message in messages] == ["user", "assistant", "tool", "assistant", "user"]
    assert (messages[1].reasoning, messages[3].reasoning) == (None, "hm")


def test_the_tools_that_are_allowed() -> None:
    """ogx#3548: the field was a bad request. All of the tools stay in the prompt."""
    tools = [TOOL, TOOL | {"name": "then"}]
    for mode in ("auto", "required"):
        body = {"input": "a", "tools": tools, "tool_choice": allowed("then", mode=mode)}
        chat = ResponsesRequest.model_validate(body).chat()
        assert chat.choice_of_tools == mode
        assert [tool.function.name for tool in chat.callable_tools] == ["then"]
        assert len(chat.tools or []) == 2


def test_deltas_belong_to_their_item(client: openai.OpenAI) -> None:
    """vllm#35184: the index of a part grew with each delta; vllm#52418: arguments between words of others."""
    stream = client.responses.create(
        model="m", input=f"<think>hm, well</think>So\n{CALL}\n{CALL}", tools=[TOOL], stream=True
    )
    events: list[Any] = list(stream)
    now: Any = None
    calls: dict[str, str] = {}
    for event in events:
        if event.type == "response.output_item.added":
            assert now is None
            now = event.item
            assert now.type != "function_call" or now.name == "now"
        elif event.type == "response.output_item.done":
            now = None
        elif event.type.endswith(".delta"):
            assert now is not None
            assert event.item_id == now.id
            assert getattr(event, "content_index", 0) == 0
            if event.type == "response.function_call_arguments.delta":
                calls[now.id] = calls.get(now.id, "") + event.delta
    assert list(calls.values()) == ['{"a": 1}'] * 2


def test_cut_off_in_a_call(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="m", input=CALL, tools=[TOOL], max_output_tokens=45)
    assert (answer.status, answer.output[0].type) == ("incomplete", "function_call")
    assert answer.output[0].to_dict()["status"] == "incomplete"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        # vllm#50256: refused without naming the field
        ({"reasoning": {"effort": "enormous"}}, "reasoning.effort"),
        # vllm#35438: a status of 500
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "json_schema": {"schema": {}}}}}, "text.format"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format"),
        ({"include": ["everything"]}, "include.0"),
        # llama.cpp and LiteLLM report the same kind: what is wrong with an item was told of another field
        ({"input": ["hi"]}, "input"),
        ({"input": 5}, "input"),
        ({"input": ""}, "input"),
        ({"input": [say("hi"), CALLED, RESULT | {"output": {"a": 1}}]}, "input.2.output"),
        ({"input": [say("hi"), CALLED, RESULT | {"output": None}]}, "input.2.output"),
        (
            {"structured_outputs": {"regex": "a"}, "text": {"format": {"type": "json_object"}}},
            "structured_outputs",
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "then"}}, "tool_choice"),
        # vllm#53626: a status of 501; vllm#24232: of 500
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        # Rapid-MLX#744: a call was required of no tools, and nothing was said
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "name": "now"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": allowed("then")}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": allowed("now", mode="none")}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": allowed() | {"tools": [{"type": "mcp"}]}}, "tool_choice"),
    ],
)
def test_the_field_is_named(served: Served, change: dict[str, Any], param: str) -> None:
    response = httpx.post(f"{served.url}/v1/responses", json={"input": "hi", **change})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_the_message_names_the_item_and_the_field(served: Served) -> None:
    def message(**body: Any) -> str:
        answer = httpx.post(f"{served.url}/v1/responses", json=body)
        return str(answer.json()["error"]["message"])

    assert message(input=[say("a"), "b"]).startswith("input: item 1 must be an object")
    assert message(input="") == "input must not be empty"
    assert message(input="a", tools=[TOOL], tool_choice=allowed()).endswith(
        'needs "mode": "auto" or "required", "tools": [{"type": "function", "name": "..."}]'
    )
    assert message(input="a", tools=[TOOL], tool_choice="any").endswith(
        '{"type": "function", "name": "..."} or {"type": "allowed_tools", "mode": "auto", "tools": [...]}'
    )
    computer = message(input=[{"type": "computer_call"}])
    assert computer.endswith("not supported; send message, reasoning, function_call and function_call_output")
    both = message(input="a", structured_outputs={"regex": "a"}, text={"format": {"type": "json_object"}})
    assert both == "structured_outputs: not beside text.format; give one of them"


def test_fields_that_vllm_has_too(served: Served) -> None:
    """vllm#38613 and its kind: penalties and structured outputs, and all that ``include`` can name."""
    body = {
        "input": "hello",
        "presence_penalty": 0.5,
        "frequency_penalty": -0.25,
        "stop": ["ll"],
        "include_stop_str_in_output": True,
        "include": ["file_search_call.results", "web_search_call.action.sources"],
    }
    answer = httpx.post(f"{served.url}/v1/responses", json=body).json()
    assert (answer["presence_penalty"], answer["frequency_penalty"]) == (0.5, -0.25)
    assert answer["output"][0]["content"][0]["text"] == "hell"
    bad = httpx.post(f"{served.url}/v1/responses", json={"input": "a", "structured_outputs": {"regexp": "a"}})
    assert bad.json()["error"]["param"] == "structured_outputs"


@pytest.mark.parametrize(
    ("last", "goes_on"),
    [
        ({"role": "assistant", "status": "incomplete"}, True),
        ({"role": "assistant", "status": "in_progress", "type": "message"}, True),
        ({"role": "assistant", "status": "completed"}, False),
        ({"role": "assistant"}, False),
        ({"role": "user", "status": "incomplete"}, False),
    ],
)
def test_an_unfinished_message_goes_on(last: dict[str, Any], goes_on: bool) -> None:
    """An item that comes back as it was cut off is continued, as in vLLM, and not answered."""
    content = [{"type": "output_text", "text": "So f"}]
    body = ResponsesRequest.model_validate({"input": [say("hi"), last | {"content": content}]})
    chat = body.chat()
    assert chat.continue_final_message is goes_on
    assert chat.messages[-1].content == "So f"
