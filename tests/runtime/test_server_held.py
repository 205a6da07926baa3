"""Formats and calls that hold, also behind thoughts, through the official client, on a real engine with a
tiny random model. Biases make it begin and end its thoughts and calls."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pydantic
import pytest
from model_folders import byte_level, write_folder
from serving import serving
from tiny_llama import write_tiny_llama
from tokenizers import AddedToken, Tokenizer

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


STRICT: Any = [{"type": "function", "function": {**TOOLS[0]["function"], "strict": True}}, TOOLS[1]]
TEMPLATE = (
    '{#- <tool_call> "arguments" -#}{{ messages[-1]["content"] }}{{ eos_token }}'
    "{% if think %}<think>\n{% elif enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
ADDED = ("<think>", "</think>", "<tool_call>")
OPENED = {"chat_template_kwargs": {"think": True}}
CLOSED = {"chat_template_kwargs": {"enable_thinking": False}}
PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["age"],
    "additionalProperties": False,
}


def tiny(
    folder: Path, marks: tuple[str, ...], template: str, *, special: bool, end: str = "<|end|>"
) -> tuple[Path, dict[str, int]]:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken(mark, special=special, normalized=False) for mark in marks])
    write_folder(folder, tokenizer, chat_template=template, eos_token=end)
    ids = {mark: tokenizer.token_to_id(mark) for mark in marks}
    write_tiny_llama(
        folder, vocab_size=tokenizer.get_vocab_size(), max_len=2048, eos=(tokenizer.token_to_id(end),)
    )
    return folder, ids


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    return tiny(tmp_path_factory.mktemp("model"), ADDED, TEMPLATE, special=False)


@pytest.fixture(scope="module")
def bias(model: tuple[Path, dict[str, int]]) -> dict[str, int]:
    """Towards the end of thoughts."""
    return {str(model[1]["</think>"]): 8}


@pytest.fixture(scope="module")
def client(
    model: tuple[Path, dict[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    flags = ("--served-model-name", "tiny", "--reasoning-parser", "qwen3")
    with serving(model[0], tmp_path_factory.mktemp("out"), *flags, real=True) as server:
        server.wait_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            yield client


def chat(client: openai.OpenAI, **options: Any) -> Any:
    messages: Any = [{"role": "user", "content": "hi"}]
    options = {
        "tools": TOOLS,
        "temperature": 1.5,
        "max_tokens": 800,
        "seed": 7,
        "extra_body": CLOSED,
    } | options
    return client.chat.completions.create(model="tiny", messages=messages, **options)


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


# --- behind thoughts --------------------------------------------------------------------------------------

FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}


@pytest.mark.parametrize("opened", [True, False])
def test_a_format_behind_thoughts(client: openai.OpenAI, bias: dict[str, int], opened: bool) -> None:
    """The template has opened them, or the model may. vllm#50948, dynamo#11512: the JSON was told as a
    thought; vllm#17393: blanks without end."""
    more: dict[str, Any] = {"tools": None, "response_format": FORMAT, "logit_bias": bias, "seed": 5}
    extra = OPENED if opened else {}
    answer = chat(client, n=4, extra_body=extra, **more)
    thought = 0
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), PERSON)
        thought += bool(choice.message.reasoning)
    assert thought > 0 or not opened
    chunks = [c.choices[0] for c in chat(client, stream=True, extra_body=extra, **more) if c.choices]
    assert "".join(c.delta.content or "" for c in chunks) == answer.choices[0].message.content
    reasoning = "".join(getattr(c.delta, "reasoning", None) or "" for c in chunks)
    assert reasoning == (answer.choices[0].message.reasoning or "")


def test_thoughts_do_not_end_the_answer(client: openai.OpenAI, bias: dict[str, int]) -> None:
    """The end token is no way out before the schema is satisfied (vLLM lets a model end in its thoughts)."""
    only_the_end = dict.fromkeys(bias, -100) | {"0": 100}
    answer = chat(
        client, tools=None, response_format=FORMAT, logit_bias=only_the_end, max_tokens=40, extra_body=OPENED
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content is None


def test_without_thoughts(client: openai.OpenAI) -> None:
    """sglang#9282, vllm#17393: with thoughts turned off the schema was not held."""
    answer = chat(client, tools=None, response_format=FORMAT)
    assert answer.choices[0].message.reasoning is None
    jsonschema.validate(json.loads(answer.choices[0].message.content), PERSON)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "place"}}])
def test_calls_behind_thoughts(client: openai.OpenAI, bias: dict[str, int], choice: Any) -> None:
    options = {"tool_choice": choice, "logit_bias": bias, "extra_body": OPENED, "parallel_tool_calls": False}
    choices = chat(client, n=4, **options).choices
    assert any(item.message.reasoning for item in choices)
    for item in choices:
        (call,) = item.message.tool_calls
        schema = {"place": PLACE, "now": {"maxProperties": 0}}[call.function.name]
        jsonschema.validate(json.loads(call.function.arguments), schema)
        assert item.message.content is None


def test_responses_behind_thoughts(client: openai.OpenAI, bias: dict[str, int]) -> None:
    class Person(pydantic.BaseModel):
        age: int

    common: Any = {"model": "tiny", "input": "hi", "temperature": 1.5, "max_output_tokens": 800}
    common["extra_body"] = OPENED | {"logit_bias": bias, "seed": 7}
    parsed = client.responses.parse(text_format=Person, **common)
    assert parsed.output[-1].type == "message"
    assert isinstance(parsed.output_parsed, Person)
    tools: Any = [{"type": "function", **tool["function"]} for tool in TOOLS]
    common["parallel_tool_calls"] = False  # many calls could be cut by the limit, and a cut call is a message
    called = client.responses.create(tools=tools, tool_choice="required", **common)
    assert {item.type for item in called.output} - {"reasoning"} == {"function_call"}


def test_logprobs_of_responses(client: openai.OpenAI) -> None:
    """Of the text alone: the thoughts have none."""
    common: Any = {"model": "tiny", "input": "hi", "include": ["message.output_text.logprobs"]}
    common |= {"max_output_tokens": 12, "top_logprobs": 2, "extra_body": CLOSED, "temperature": 0}
    part: Any = client.responses.create(**common).output[0]
    logprobs = part.content[0].logprobs
    assert b"".join(bytes(entry.bytes) for entry in logprobs).decode(errors="replace") == part.content[0].text
    assert all(len(entry.top_logprobs) == 2 for entry in logprobs)
    events: list[Any] = list(client.responses.create(stream=True, **common))
    told = [entry for e in events if e.type == "response.output_text.delta" for entry in e.logprobs]
    assert [entry.token for entry in told] == [entry.token for entry in logprobs]
    without: Any = client.responses.create(**common | {"include": [], "top_logprobs": 0}).output[0]
    assert not without.content[0].logprobs


# --- in the form of the family ----------------------------------------------------------------------------

MARKS = {  # what the calls of these begin with, special tokens or not
    "qwen3_coder": ("<function=place>", ("<tool_call>",)),
    "llama4_pythonic": ("place(", ("<|python_start|>", "<|python_end|>")),
    "mistral": ("[TOOL_CALLS]", ("[TOOL_CALLS]", "[ARGS]")),
}
WHERE: Any = {"type": "function", "function": {"name": "place"}}


@pytest.mark.parametrize("family", MARKS)
def test_demanded_calls_in_the_form_of_the_family(family: str, tmp_path: Path) -> None:
    """vllm#54808, vllm#39870: with tags for arguments, ``required`` and named functions were not held, or as
    JSON that these models never learnt; vllm#35936: no calls, yet a finish of "tool_calls"; vllm#39056:
    behind thoughts."""
    begins, marks = MARKS[family]
    folder, ids = tiny(tmp_path / "model", ("<think>", "</think>", *marks), TEMPLATE, special=True)
    flags = ("--served-model-name", "tiny", "--tool-call-parser", family, "--reasoning-parser", "qwen3")
    decode = Tokenizer.from_file(str(folder / "tokenizer.json")).decode
    with serving(folder, tmp_path, *flags, real=True) as server:
        server.wait_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            extra = {"return_token_ids": True}
            for choice in chat(client, n=4, tool_choice=WHERE, extra_body=CLOSED | extra).choices:
                (call,) = choice.message.tool_calls
                assert call.function.name == "place"
                jsonschema.validate(json.loads(call.function.arguments), PLACE)
                assert (choice.finish_reason, choice.message.content) == ("stop", None)
                assert begins in decode(choice.token_ids, skip_special_tokens=False)
            bias = {str(ids["</think>"]): 8}
            common: Any = {"tool_choice": "required", "logit_bias": bias, "extra_body": OPENED}
            common["parallel_tool_calls"] = False
            for choice in chat(client, n=4, **common).choices:
                (call,) = choice.message.tool_calls
                schema = {"place": PLACE, "now": {"maxProperties": 0}}[call.function.name]
                jsonschema.validate(json.loads(call.function.arguments), schema)
                assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
            calls = [
                call.function
                for chunk in chat(client, stream=True, **common)
                for call in chunk.choices[0].delta.tool_calls or ()
            ]
            (name,) = (call.name for call in calls if call.name)
            arguments = json.loads("".join(call.arguments or "" for call in calls))
            jsonschema.validate(arguments, {"place": PLACE, "now": {"maxProperties": 0}}[name])


# --- strict functions that the model may call -------------------------------------------------------------


def test_strict_calls_fit_and_words_are_free(
    client: openai.OpenAI, model: tuple[Path, dict[str, int]]
) -> None:
    bias = {str(model[1]["<tool_call>"]): 6, "0": 2}
    answer = chat(client, n=8, tools=STRICT, logit_bias=bias, parallel_tool_calls=False, seed=3)
    called = [choice.message for choice in answer.choices if choice.message.tool_calls]
    assert len(called) > 2
    for message in called:
        (call,) = message.tool_calls
        if call.function.name == "place":
            jsonschema.validate(json.loads(call.function.arguments), PLACE)
    assert any(message.content for message in called)


def test_strict_calls_in_tags(model: tuple[Path, dict[str, int]], tmp_path: Path) -> None:
    """vllm#54808, sglang#13514: strict had no effect where arguments are no JSON."""
    bias = {str(model[1]["<tool_call>"]): 100}
    flags = ("--served-model-name", "tiny", "--tool-call-parser", "qwen3_coder")
    with serving(model[0], tmp_path, *flags, real=True) as server:
        server.wait_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            one: Any = {"tools": STRICT[:1], "logit_bias": bias, "parallel_tool_calls": False}
            for choice in chat(client, n=4, **one).choices:
                (call,) = choice.message.tool_calls
                jsonschema.validate(json.loads(call.function.arguments), PLACE)
            function = {"name": "f", "strict": True, "parameters": {"type": "object", "minProperties": 1}}
            with pytest.raises(openai.BadRequestError, match=r"tools: .*'minProperties'"):
                chat(client, tools=[{"type": "function", "function": function}])


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_only_allowed_functions_are_called(
    client: openai.OpenAI, model: tuple[Path, dict[str, int]], mode: str
) -> None:
    some = {"mode": mode, "tools": [{"type": "function", "function": {"name": "now"}}]}
    choice: Any = {"type": "allowed_tools", "allowed_tools": some}
    bias = {str(model[1]["<tool_call>"]): 6, "0": 2}
    answer = chat(client, n=6, tool_choice=choice, logit_bias=bias, parallel_tool_calls=False, seed=3)
    calls = [call for item in answer.choices for call in item.message.tool_calls or ()]
    assert {call.function.name for call in calls} == {"now"}
    assert mode == "auto" or len(calls) == 6


def test_without_strict_nothing_is_forced(client: openai.OpenAI, model: tuple[Path, dict[str, int]]) -> None:
    bias = {str(model[1]["<tool_call>"]): 100}
    (choice,) = chat(client, logit_bias=bias, max_tokens=5).choices
    assert choice.message.content == "<tool_call>" * 5


def test_a_strict_schema_that_is_not_held_is_refused(client: openai.OpenAI) -> None:
    function = {"name": "f", "strict": True, "parameters": {"type": "object", "not": {}}}
    with pytest.raises(openai.BadRequestError, match=r"tools: .*'not'") as caught:
        chat(client, tools=[{"type": "function", "function": function}])
    assert caught.value.param == "tools"


@pytest.mark.parametrize("calls", [False, True], ids=["format", "calls"])
def test_a_format_beside_functions(
    client: openai.OpenAI, model: tuple[Path, dict[str, int]], bias: dict[str, int], calls: bool
) -> None:
    """Words have the format, and the model may call instead."""
    marks = (model[1]["<tool_call>"], byte_level().token_to_id("<"))  # or spelled
    towards = bias | {str(marks[0]): 100} if calls else bias | {str(id_): -100 for id_ in marks}
    options = {
        "response_format": FORMAT,
        "logit_bias": towards,
        "parallel_tool_calls": False,
        "tools": STRICT[:1],
    }
    for item in chat(client, n=3, extra_body=CLOSED if calls else OPENED, **options).choices:
        if calls:
            (call,) = item.message.tool_calls
            jsonschema.validate(json.loads(call.function.arguments), PLACE)
            assert not item.message.content
        else:
            jsonschema.validate(json.loads(item.message.content), PERSON)


def test_a_structural_tag_behind_thoughts(client: openai.OpenAI, bias: dict[str, int]) -> None:
    number = {"type": "tag", "begin": "<n>", "content": {"type": "regex", "pattern": "[0-9]"}, "end": "</n>"}
    tag: Any = {"type": "structural_tag", "format": number}
    for item in chat(
        client, n=3, tools=None, response_format=tag, logit_bias=bias, extra_body=OPENED
    ).choices:
        assert re.fullmatch("<n>[0-9]</n>", item.message.content)


# --- gpt-oss's channels -----------------------------------------------------------------------------------


def test_channels(tmp_path: Path) -> None:
    """sglang#9259: the schema was held in the channel of thoughts, or not at all."""
    marks = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|return|>")
    template = "{{ messages[-1]['content'] }}{{ eos_token }}<|start|>assistant"
    folder, ids = tiny(tmp_path / "model", marks, template, special=True, end="<|return|>")
    flags = ("--served-model-name", "tiny", "--reasoning-parser", "openai_gptoss")
    # <|end|>, of messages, and the end: so likely that none is longer than the context.
    bias = {"0": 9, str(ids["<|return|>"]): 9}
    with serving(folder, tmp_path, *flags, real=True) as server:
        server.wait_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            for item in chat(client, n=3, tools=None, response_format=FORMAT, logit_bias=bias).choices:
                jsonschema.validate(json.loads(item.message.content), PERSON)
            for item in chat(client, n=3, response_format=FORMAT, logit_bias=bias).choices:
                if not item.message.tool_calls:
                    jsonschema.validate(json.loads(item.message.content), PERSON)
            # A header that goes on names a function: else it may say one message after the other to the end.
            calling = bias | {str(ids["<|message|>"]): -5}
            for item in chat(client, n=3, tool_choice="required", logit_bias=calling).choices:
                (call,) = item.message.tool_calls
                schema = {"place": PLACE, "now": {"maxProperties": 0}}[call.function.name]
                jsonschema.validate(json.loads(call.function.arguments), schema)
                assert item.finish_reason == "tool_calls"
