"""Tools and thoughts through the official client.

The engine core is the fake one, which repeats the prompt, and the chat template writes the last message:
the "model" says what the user says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from model_folders import byte_level, write_folder
from serving import Served, serving
from sheaf_runtime.text import Tokenizer
from tokenizers import AddedToken

ECHO = (
    '{#- <tool_call> "arguments" -#}'
    "{% if show %}{{ messages | tojson }}{{ tools | tojson }}"
    "{{ verbosity }}{{ enable_thinking }} {{ reasoning_effort }}"
    "{% else %}{{ messages[-1]['content'] }}{% endif %}"
    "{{ eos_token }}{% if add_generation_prompt and think %}<think>\n{% endif %}"
)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW: Any = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
ARGUMENTS = '{"city": "Zü}rich"}'
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
NOW_CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def tokens_of(text: str) -> int:
    return len(Tokenizer(byte_level()).encode(text, add_special_tokens=False))


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def allowed(*names: str, mode: str = "auto") -> Any:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "core.log"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"), byte_level(), chat_template=ECHO)


@pytest.fixture(scope="module")
def served(folder: Path, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    flags = ("--reasoning-parser", "qwen3", "--enable-auto-tool-choice", "--max-model-len", "4096")
    with serving(folder, tmp_path_factory.mktemp("out"), *flags, fake={"log": str(log)}) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def plain(client: openai.OpenAI, text: str, **options: Any) -> Any:
    return client.chat.completions.create(model=_model(client), messages=user(text), **options)


def _model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def streamed(client: openai.OpenAI, text: str, **options: Any) -> list[Any]:
    options["stream"] = True
    return [chunk.choices[0] for chunk in plain(client, text, **options) if chunk.choices]


def joined(choices: list[Any]) -> dict[str, Any]:
    """A stream's chunks as the message they make, in the way that clients put it together."""
    made: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "finish": None}
    for choice in choices:
        delta = choice.delta
        made["content"] += delta.content or ""
        made["reasoning"] += getattr(delta, "reasoning", None) or ""
        for call in delta.tool_calls or ():
            if call.index == len(made["calls"]):
                assert call.id, "the first piece of a call has its id"
                assert call.type == "function"
                made["calls"].append([call.function.name, ""])
            else:
                assert call.index == len(made["calls"]) - 1
                assert call.function.name is None
            made["calls"][-1][1] += call.function.arguments or ""
        made["finish"] = choice.finish_reason or made["finish"]
    return made


def whole(answer: Any) -> dict[str, Any]:
    (choice,) = answer.choices
    message = choice.message
    calls = [[call.function.name, call.function.arguments] for call in message.tool_calls or ()]
    return {
        "content": message.content or "",
        "reasoning": message.reasoning or "",
        "calls": calls,
        "finish": choice.finish_reason,
    }


def said(
    content: str = "", *calls: tuple[str, str], reasoning: str = "", finish: str | None = None
) -> dict[str, Any]:
    finish = finish or ("tool_calls" if calls else "stop")
    return {
        "content": content,
        "reasoning": reasoning,
        "calls": [list(call) for call in calls],
        "finish": finish,
    }


WEATHER_CALL = ("weather", ARGUMENTS)
TRANSCRIPTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "a call": (CALL, {}, said("", WEATHER_CALL)),
    "words and two calls": (f"Look:\n{CALL}\n{NOW_CALL}", {}, said("Look:\n", WEATHER_CALL, ("now", "{}"))),
    "words": ("Good morning", {}, said("Good morning")),
    "one call at most": (
        f"{CALL}\n{NOW_CALL}",
        {"parallel_tool_calls": False},
        said("", WEATHER_CALL),
    ),
    "calls forbidden": (CALL, {"tool_choice": "none"}, said(CALL)),
    "malformed": ("<tool_call>{oops}</tool_call>", {}, said("<tool_call>{oops}</tool_call>")),
    "a name that no tool has": (
        NOW_CALL.replace("now", "then"),
        {},
        said("", ("then", "{}")),
    ),
    "cut off in the arguments": (
        CALL,
        {"max_tokens": tokens_of(CALL.partition('"}}')[0])},
        said("", ("weather", ARGUMENTS[:-2]), finish="length"),
    ),
    "cut off in the mark": (CALL, {"max_tokens": tokens_of("<tool_")}, said("<tool_", finish="length")),
    "thoughts": ("<think>hm</think>Yes", {}, said("Yes", reasoning="hm")),
    "thoughts and a call": (f"<think>hm</think>\n\n{CALL}", {}, said("", WEATHER_CALL, reasoning="hm")),
    "thoughts cut off": (
        "<think>hm, well</think>Yes",
        {"max_tokens": tokens_of("<think>hm, we")},
        said("", reasoning="hm, we", finish="length"),
    ),
    "thoughts hidden": (
        "<think>hm</think>Yes",
        {"extra_body": {"include_reasoning": False}},
        said("Yes"),
    ),
    "stop in a call": (CALL, {"stop": ["rich"]}, said("", ("weather", '{"city": "Zü}'))),
}


@pytest.mark.parametrize(("text", "options", "expected"), TRANSCRIPTS.values(), ids=TRANSCRIPTS.keys())
def test_whole_and_streamed(
    client: openai.OpenAI, text: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    options = {"tools": TOOLS, **options}
    assert whole(plain(client, text, **options)) == expected
    assert joined(streamed(client, text, **options)) == expected


def test_the_arguments_come_in_pieces(client: openai.OpenAI) -> None:
    deltas = [choice.delta for choice in streamed(client, CALL, tools=TOOLS)]
    calls = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
    assert (calls[0].function.name, calls[0].function.arguments) == ("weather", "")
    assert len(calls) > 10
    assert {call.id for call in calls[1:]} == {None}
    assert deltas[0].role == "assistant"


def test_each_choice_has_its_calls(client: openai.OpenAI) -> None:
    answer = plain(client, CALL, tools=TOOLS, n=2)
    ids = {choice.message.tool_calls[0].id for choice in answer.choices}
    assert len(ids) == 2
    chunks = streamed(client, CALL, tools=TOOLS, n=2)
    for index in range(2):
        assert joined([choice for choice in chunks if choice.index == index]) == said("", WEATHER_CALL)


def test_the_client_puts_a_stream_together(client: openai.OpenAI) -> None:
    options: Any = {"model": _model(client), "messages": user(f"Look:\n{CALL}\n{NOW_CALL}"), "tools": TOOLS}
    with client.chat.completions.stream(**options) as stream:
        answer = stream.get_final_completion()
    message = answer.choices[0].message
    assert [(call.function.name, call.function.arguments) for call in message.tool_calls or ()] == [
        WEATHER_CALL,
        ("now", "{}"),
    ]
    assert message.content == "Look:\n"


def test_content_is_null_beside_calls_and_thoughts(client: openai.OpenAI) -> None:
    assert plain(client, CALL, tools=TOOLS).choices[0].message.content is None
    assert plain(client, "<think>hm</think>", tools=TOOLS).choices[0].message.content is None
    assert plain(client, "Yes").choices[0].message.tool_calls is None


def test_thoughts_are_counted(client: openai.OpenAI) -> None:
    thoughts = "so, then"
    for stream in (False, True):
        extra = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        answer = plain(client, f"<think>{thoughts}</think>Yes", **extra)
        usage = list(answer)[-1].usage if stream else answer.usage
        # The marks are several tokens of this tokenizer; their last and first letters decide.
        assert (
            tokens_of(thoughts) <= usage.completion_tokens_details.reasoning_tokens < tokens_of(thoughts) + 8
        )


def test_logprobs_and_ids_come_once(client: openai.OpenAI) -> None:
    extra = {"extra_body": {"return_token_ids": True}}
    whole_ids = plain(client, CALL, tools=TOOLS, **extra).choices[0].token_ids
    ids = [
        id_
        for choice in streamed(client, CALL, tools=TOOLS, **extra)
        for id_ in getattr(choice, "token_ids", ())
    ]
    assert ids == whole_ids


# --- what the template sees -------------------------------------------------------------------------------


def prompt(folder: Path, log: Path) -> str:
    line = [line for line in log.read_text().splitlines() if line.startswith("add ")][-1]
    return Tokenizer.from_folder(folder).decode(
        json.loads(line[4:])["prompt_token_ids"], skip_special_tokens=False
    )


SHOW: dict[str, Any] = {"chat_template_kwargs": {"show": True}}


def test_calls_and_results_go_through_the_template(client: openai.OpenAI, folder: Path, log: Path) -> None:
    history: list[Any] = [
        *user("hi"),
        {
            "role": "assistant",
            "content": None,
            "reasoning": "hm",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Ö"}'},
                },
                {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": ""}},
                {"id": "call_3", "type": "function", "function": {"name": "now", "arguments": '{"a": '}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "mild"}]},
        {"role": "tool", "tool_call_id": "call_2", "content": "12:00"},
    ]
    client.chat.completions.create(
        model=_model(client), messages=history, tools=TOOLS, max_tokens=1, extra_body=SHOW
    )
    seen = prompt(folder, log)
    messages, end = json.JSONDecoder().raw_decode(seen)
    assert json.JSONDecoder().raw_decode(seen[end:])[0] == TOOLS
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool"]
    calls = messages[1]["tool_calls"]
    assert [call["function"]["arguments"] for call in calls] == [{"city": "Ö"}, {}, '{"a": ']
    assert [call["id"] for call in calls] == ["call_1", "call_2", "call_3"]
    assert messages[1]["content"] == ""
    assert messages[1]["reasoning"] == messages[1]["reasoning_content"] == "hm"
    assert messages[2] == {"role": "tool", "tool_call_id": "call_1", "content": "mild"}


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({}, " "),
        ({"reasoning_effort": "low"}, "True low"),
        ({"reasoning_effort": "none"}, "False none"),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}, "False low"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "False "),
    ],
)
def test_what_says_how_to_think(
    client: openai.OpenAI, folder: Path, log: Path, options: dict[str, Any], end: str
) -> None:
    kwargs = {**SHOW["chat_template_kwargs"], **options.pop("chat_template_kwargs", {})}
    plain(client, "hi", max_tokens=1, extra_body={"chat_template_kwargs": kwargs}, **options)
    assert prompt(folder, log).endswith(f"{end}<|end|>")


def test_verbosity_is_the_templates(client: openai.OpenAI, folder: Path, log: Path) -> None:
    plain(client, "hi", max_tokens=1, verbosity="low", extra_body=SHOW)
    assert prompt(folder, log).endswith("low <|end|>")


def test_tools_that_are_not_allowed_stay_in_the_prompt(
    client: openai.OpenAI, folder: Path, log: Path
) -> None:
    """OpenAI's words: so that what is cached of them stays good."""
    seen = []
    for choice in ("auto", allowed("weather"), allowed("now", mode="required")):
        plain(client, "hi", max_tokens=1, tools=TOOLS, tool_choice=choice, extra_body=SHOW)
        seen.append(prompt(folder, log))
    assert len(set(seen)) == 1
    assert "weather" in seen[0]
    assert "now" in seen[0]


# --- refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": True}}]},
            "tools.0.function.parameters",
        ),
        ({"tools": [NOW], "tool_choice": "now"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": allowed("then")}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": allowed()}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": allowed("now", mode="none")}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": allowed("now")["allowed_tools"]}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "allowed_tools", "allowed_tools": [NOW]}}, "tool_choice"),
        ({"tool_choice": allowed("now")}, "tool_choice"),
        ({"verbosity": "shouting"}, "verbosity"),
        ({"tools": [NOW], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "then"}}}, "tool_choice"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        (
            {"messages": [{"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f"}}]}]},
            "messages.0",
        ),
        ({"messages": [{"role": "tool", "tool_call_id": "a"}]}, "messages.0"),
    ],
)
def test_bad_requests(served: Served, change: dict[str, Any], param: str) -> None:
    body = {"messages": user("hi"), **change}
    response = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


# --- other servers ----------------------------------------------------------------------------------------


def test_marks_that_are_special_tokens(tmp_path: Path) -> None:
    """Mistral's: the mark is read though special tokens are left out, and ids have nine characters."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens(
        [AddedToken("[TOOL_CALLS]", special=True), AddedToken("[THINK]", special=True)]
    )
    template = "{#- [TOOL_CALLS] -#}{{ messages[-1]['content'] }}{{ eos_token }}"
    folder = write_folder(tmp_path / "model", tokenizer, chat_template=template)
    flags = ("--reasoning-parser", "mistral")
    with serving(folder, tmp_path, *flags, fake={"vocab_size": 400}) as server:
        server.wait_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            text = '[THINK]hm[/THINK]<|turn|>[TOOL_CALLS]now{"a": 1}'
            answer = plain(client, text, tools=TOOLS)
            assert whole(answer) == said("", ("now", '{"a": 1}'), reasoning="hm")
            (call,) = answer.choices[0].message.tool_calls
            assert len(call.id) == 9
            assert call.id.isalnum()
            assert plain(client, text, tool_choice="none").choices[0].message.content == 'now{"a": 1}'


def test_no_parser_is_known(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", byte_level())
    with serving(folder, tmp_path, fake={}) as server:
        server.wait_ready()
        body = {"messages": user("hi"), "tools": TOOLS}
        response = httpx.post(f"{server.url}/v1/chat/completions", json=body)
        assert response.status_code == 400
        assert "--tool-call-parser" in response.json()["error"]["message"]
    with serving(folder, tmp_path, "--enable-auto-tool-choice", fake={}) as server:
        assert server.wait_exit() == 2
        assert "--tool-call-parser" in server.output()
