"""The HTTP API through the official client, and its edges through httpx.

The engine core is the fake one, which repeats the prompt.
"""

from __future__ import annotations

import asyncio
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

MODEL = "tiny"
HI = [{"role": "user", "content": "hi"}]
PROMPT = "<|bos|><|turn|>user:hi<|end|><|turn|>assistant:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"), byte_level())


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "core.log"


@pytest.fixture(scope="module")
def served(folder: Path, log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    names = ("--served-model-name", MODEL, "other/name")
    with serving(folder, tmp_path_factory.mktemp("out"), *names, fake={"log": str(log)}) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=30) as http:
        yield http


def last_added(log: Path) -> Any:
    """The last request that reached the engine."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("add ")]
    return json.loads(lines[-1][4:])


def test_responses_of_a_model_that_marks_nothing(client: openai.OpenAI) -> None:
    """Neither calls nor thoughts are told from its text: all of it is content."""
    answer = client.responses.create(model=MODEL, input="hi")
    assert (answer.output_text, answer.status) == ("user:hi", "completed")
    with client.responses.stream(model=MODEL, input="hi") as stream:
        assert stream.get_final_response().output_text == "user:hi"


# --- completions ------------------------------------------------------------------------------------------


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="hello", max_tokens=12)
    assert answer.choices[0].text == "hellohello"
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == MODEL
    assert answer.object == "text_completion"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        6,
        12,
        18,
    )


def test_max_tokens_defaults_to_16(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="hello")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 16


def test_completion_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.completions.create(
            model=MODEL, prompt="é😀", max_tokens=5, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = [chunk.choices[0].text for chunk in chunks[:-1]]
    assert "".join(texts) == "é😀"
    assert "\ufffd" not in "".join(texts)
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]].count(None) == len(texts) - 1
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "cd"], ["ab", "cd"]),
        ([5, 6], None),
        ([[5, 6], [7]], None),
    ],
)
def test_forms_of_prompt(client: openai.OpenAI, folder: Path, prompt: Any, texts: list[str] | None) -> None:
    answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=3)
    if texts is None:
        lists = prompt if isinstance(prompt[0], list) else [prompt]
        texts = [Tokenizer.from_folder(folder).decode((ids * 3)[:3]) for ids in lists]
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == list(range(len(texts)))


def test_n_and_echo(client: openai.OpenAI, served: Served, log: Path) -> None:
    asked = ("request_params_n", "request_max_num_generation_tokens", "request_params_max_tokens")
    names = [f"vllm:{name}_{part}" for name in asked for part in ("count", "sum")]
    before = [served.metric(name) for name in names]
    answer = client.completions.create(model=MODEL, prompt=["ab", "cd"], max_tokens=3, n=2, echo=True, seed=7)
    assert [choice.text for choice in answer.choices] == ["abab", "abab", "cdcd", "cdcd"]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 6
    assert answer.usage.completion_tokens == 12
    # As vLLM counts them: two prompts, four requests of the engine.
    grown = [served.metric(name) - old for name, old in zip(names, before, strict=True)]
    assert grown == [2, 4, 2, 6, 4, 12]
    assert last_added(log)["sampling"]["seed"] == 8
    stream = client.completions.create(model=MODEL, prompt="ab", max_tokens=3, n=2, echo=True, stream=True)
    texts = {0: "", 1: ""}
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "abab", 1: "abab"}


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_across_tokens(http: httpx.Client, served: Served, stream: bool) -> None:
    body = {"prompt": "abcdef", "max_tokens": 400, "stop": ["zzz", "de"], "stream": stream}
    text, finish, stop, _ = complete(http, body)
    assert (text, finish, stop) == ("abc", "stop", "de")
    text, *_ = complete(http, body | {"include_stop_str_in_output": True})
    assert text == "abcde"
    text, *_ = complete(http, body | {"min_tokens": 8})
    assert text == "abcdefabc"


def complete(http: httpx.Client, body: dict[str, Any]) -> tuple[str, str, Any, Any]:
    """Text, finish reason, stop reason and usage of a completion, streamed or not."""
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        answer = response.json()
        choice = answer["choices"][0]
        return choice["text"], choice["finish_reason"], choice["stop_reason"], answer["usage"]
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events[-1] == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events[:-1]]
    text = "".join(choice["text"] for choice in choices)
    return text, choices[-1]["finish_reason"], choices[-1]["stop_reason"], None


def test_stop_token_ids_and_eos(http: httpx.Client, folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    c = tokenizer.encode("c", add_special_tokens=False)[0]
    text, finish, stop, usage = complete(http, {"prompt": "abcd", "stop_token_ids": [c], "max_tokens": 9})
    assert (text, finish, stop, usage["completion_tokens"]) == ("ab", "stop", c, 4)
    text, finish, stop, _ = complete(http, {"prompt": "ab<|end|>cd", "max_tokens": 6})
    assert (text, finish, stop) == ("ab", "stop", None)  # the model's own end
    text, finish, *_ = complete(http, {"prompt": "ab<|end|>cd", "max_tokens": 6, "ignore_eos": True})
    assert (text, finish) == ("abcd", "length")
    text, *_ = complete(
        http, {"prompt": "ab<|end|>c", "max_tokens": 5, "ignore_eos": True, "skip_special_tokens": False}
    )
    assert text == "<|bos|>ab<|end|>c"


def test_parameters_reach_the_engine(client: openai.OpenAI, log: Path) -> None:
    client.completions.create(
        model=MODEL,
        prompt="a",
        temperature=0,
        top_p=0.5,
        max_tokens=2,
        seed=3,
        user="me",
        extra_body={
            "top_k": 5,
            "min_tokens": 1,
            "ignore_eos": True,
            "priority": -2,
            "cache_salt": "s",
            "stop_token_ids": [9],
        },
    )
    added = last_added(log)
    assert added["priority"] == -2
    assert added["cache_salt"] == "s"
    neutral = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "min_p": 0.0}
    neutral |= {"logit_bias": {}, "allowed_token_ids": None, "bad_words": [], "logprobs": None}
    assert added["sampling"] == neutral | {
        "prompt_logprobs": None,
        "grammar": None,
        "temperature": 0.0,
        "top_k": 5,
        "top_p": 0.5,
        "seed": 3,
        "max_tokens": 2,
        "min_tokens": 1,
        "stop_token_ids": [9],
        "ignore_eos": True,
    }


def test_defaults_come_from_generation_config(client: openai.OpenAI, log: Path) -> None:
    client.completions.create(model=MODEL, prompt="a", extra_body={"top_k": -1})
    sampling = last_added(log)["sampling"]
    assert (sampling["temperature"], sampling["top_p"], sampling["top_k"]) == (0.7, 0.9, 0)


def test_no_answer_is_longer_than_the_generation_config_says(folder: Path, tmp_path: Path) -> None:
    """As in vLLM, also where the request asks for more."""
    fake = {"log": str(tmp_path / "log")}
    bound = ("--override-generation-config", '{"max_new_tokens": 3, "temperature": 0.25}')
    with serving(folder, tmp_path, *bound, fake=fake) as server:
        server.wait_ready()
        for asked, given in ((None, 3), (2, 2), (50, 3)):
            sent = {"prompt": "a", "max_tokens": asked, "ignore_eos": True}
            answer = httpx.post(f"{server.url}/v1/completions", json=sent).json()
            assert answer["usage"]["completion_tokens"] == given
            assert answer["choices"][0]["finish_reason"] == "length"
    sampling = last_added(tmp_path / "log")["sampling"]
    assert (sampling["temperature"], sampling["top_p"]) == (0.25, 0.9)


# --- chat -------------------------------------------------------------------------------------------------


def test_chat(client: openai.OpenAI, folder: Path, log: Path) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, max_tokens=10)  # type: ignore[arg-type]
    ids = last_added(log)["prompt_token_ids"]
    assert ids == Tokenizer.from_folder(folder).encode(PROMPT, add_special_tokens=False)
    assert ids.count(1) == 1  # one BOS
    assert answer.choices[0].message.content == "user:hi"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == len(ids) // 16 * 16


def test_chat_uses_the_rest_of_the_context(client: openai.OpenAI, log: Path) -> None:
    client.chat.completions.create(model=MODEL, messages=HI)  # type: ignore[arg-type]
    added = last_added(log)
    assert added["sampling"]["max_tokens"] == 512 - len(added["prompt_token_ids"])
    client.chat.completions.create(model=MODEL, messages=HI, max_completion_tokens=3)  # type: ignore[arg-type]
    assert last_added(log)["sampling"]["max_tokens"] == 3


def test_chat_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=HI,  # type: ignore[arg-type]
            n=2,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    for index in range(2):
        mine = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert all(choice.delta.role is None for choice in mine[1:])
        assert "".join(choice.delta.content or "" for choice in mine) == "user:hi"
        assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["stop"]
        assert mine[-1].finish_reason == "stop"


def test_usage_in_every_chunk(http: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": False}
    body = {"prompt": "abc", "max_tokens": 4, "stream": True, "stream_options": options}
    lines = [line for line in http.post("/v1/completions", json=body).text.splitlines() if line]
    usages = [json.loads(line.removeprefix("data: "))["usage"]["completion_tokens"] for line in lines[:-1]]
    assert usages == sorted(usages)
    assert usages[-2:] == [4, 4]


async def test_async_client(served: Served) -> None:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HI)  # type: ignore[arg-type]
        assert answer.choices[0].message.content == "user:hi"
        stream = await client.completions.create(model=MODEL, prompt="abc", max_tokens=4, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "abc"


def test_parts_as_other_endpoints_write_them(http: httpx.Client, log: Path) -> None:
    """langchain-ai/langchain#34751: plain strings, and what answers are made of, which clients send back."""
    parts: list[Any] = ["hi", {"type": "input_text", "text": "you"}, {"type": "output_text", "text": "a"}]
    parts += [{"type": "refusal", "refusal": "no"}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 40}
    answer = http.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"].startswith("user:hi\nyou\na\nno")


def test_a_role_that_only_the_template_knows(folder: Path, tmp_path: Path) -> None:
    """sgl-project/sglang#8920: Granite has documents, Llama 3 ipython."""
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}{% if m.role == 'document' %}[{{ m.content }}]{% else %}{{ m.content }}"
        "{% endif %}{% endfor %}"
    )
    with serving(folder, tmp_path, "--chat-template", str(template)) as server:
        server.wait_ready()

        def answer(role: str) -> Any:
            messages = [{"role": role, "content": "x"}, {"role": "user", "content": "y"}]
            return httpx.post(f"{server.url}/v1/chat/completions", json={"messages": messages}).json()

        assert answer("document")["choices"][0]["message"]["content"].startswith("[x]y")
        error = answer("alien")["error"]
        assert error["param"] == "messages.0.role"
        assert "the chat template knows no 'alien'" in error["message"]


def test_text_parts_and_template_variables(http: httpx.Client) -> None:
    parts = [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]
    parts += [{"type": "text", "text": "you"}]
    body = {"messages": [{"role": "user", "content": parts}], "chat_template_kwargs": {"any": 1}}
    answer = http.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == "user:hi\nyou"


def test_continuing_the_last_message(http: httpx.Client, log: Path, folder: Path) -> None:
    messages = [*HI, {"role": "assistant", "content": "I was"}]
    body = {"messages": messages, "continue_final_message": True, "max_tokens": 1}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    text = Tokenizer.from_folder(folder).decode(
        last_added(log)["prompt_token_ids"], skip_special_tokens=False
    )
    assert text == "<|bos|><|turn|>user:hi<|end|><|turn|>assistant:I was"
    both = http.post("/v1/chat/completions", json=body | {"add_generation_prompt": True})
    assert both.status_code == 400


# --- errors -----------------------------------------------------------------------------------------------

COMPLETION: dict[str, Any] = {"prompt": "a"}
CHAT: dict[str, Any] = {"messages": HI}


@pytest.mark.parametrize(
    ("base", "change", "param"),
    [
        (COMPLETION, {"prompt": None}, "prompt"),
        (COMPLETION, {"prompt": []}, "prompt"),
        (COMPLETION, {"prompt": [[]]}, "prompt"),
        (COMPLETION, {"prompt": ["a", 1]}, "prompt"),
        (COMPLETION, {"prompt": [True]}, "prompt"),
        (COMPLETION, {"prompt": [-1]}, "prompt"),
        (COMPLETION, {"prompt": [320]}, "prompt"),
        (COMPLETION, {"prompt": {"a": 1}}, "prompt"),
        (COMPLETION, {"prompt": "", "add_special_tokens": False}, "prompt"),
        (COMPLETION, {"max_tokens": 0}, "max_tokens"),
        (COMPLETION, {"max_tokens": "5"}, "max_tokens"),
        (COMPLETION, {"max_tokens": 5.5}, "max_tokens"),
        (COMPLETION, {"max_tokens": True}, "max_tokens"),
        (COMPLETION, {"min_tokens": 20, "max_tokens": 10}, "min_tokens"),
        (COMPLETION, {"temperature": 2.1}, "temperature"),
        (COMPLETION, {"temperature": -0.1}, "temperature"),
        (COMPLETION, {"temperature": "hot"}, "temperature"),
        (COMPLETION, {"top_p": 0}, "top_p"),
        (COMPLETION, {"top_p": 1.1}, "top_p"),
        (COMPLETION, {"top_k": -2}, "top_k"),
        (COMPLETION, {"n": 0}, "n"),
        (COMPLETION, {"n": 1000}, "n"),
        (COMPLETION, {"n": 100, "prompt": ["a"] * 11}, "n"),
        (COMPLETION, {"seed": 2**70}, "seed"),
        (COMPLETION, {"stop": ""}, "stop"),
        (COMPLETION, {"stop": [""]}, "stop"),
        (COMPLETION, {"stop": ["a"] * 65}, "stop"),
        (COMPLETION, {"stop": 5}, "stop"),
        (COMPLETION, {"stop_token_ids": [-1]}, "stop_token_ids"),
        (COMPLETION, {"stream": "yes"}, "stream"),
        (COMPLETION, {"stream_options": {"include_usage": True}}, "stream_options"),
        (COMPLETION, {"logprobs": 21}, "logprobs"),
        (COMPLETION, {"logprobs": -1}, "logprobs"),
        (COMPLETION, {"logprobs": True}, "logprobs"),
        (COMPLETION, {"prompt_logprobs": 2, "stream": True}, "prompt_logprobs"),
        (COMPLETION, {"use_beam_search": True}, "use_beam_search"),
        (COMPLETION, {"length_penalty": 0.9}, "length_penalty"),
        (COMPLETION, {"best_of": 2}, "best_of"),
        (COMPLETION, {"suffix": "x"}, "suffix"),
        (COMPLETION, {"frequency_penalty": 2.5}, "frequency_penalty"),
        (COMPLETION, {"presence_penalty": -2.5}, "presence_penalty"),
        (COMPLETION, {"repetition_penalty": 0}, "repetition_penalty"),
        (COMPLETION, {"min_p": 1.1}, "min_p"),
        (COMPLETION, {"logit_bias": {"5": 101}}, "logit_bias"),
        (COMPLETION, {"logit_bias": {"a": 1}}, "logit_bias"),
        (COMPLETION, {"logit_bias": {"-1": 1}}, "logit_bias"),
        (COMPLETION, {"logit_bias": {"320": 1}}, "logit_bias"),
        (COMPLETION, {"logit_bias": [1]}, "logit_bias"),
        (COMPLETION, {"allowed_token_ids": []}, "allowed_token_ids"),
        (COMPLETION, {"allowed_token_ids": [320]}, "allowed_token_ids"),
        (COMPLETION, {"stop_token_ids": [320]}, "stop_token_ids"),
        (COMPLETION, {"bad_words": [""]}, "bad_words"),
        (COMPLETION, {"bad_words": "a"}, "bad_words"),
        (COMPLETION, {"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        (COMPLETION, {"truncate_prompt_tokens": 0}, "prompt"),
        (COMPLETION, {"guided_json": {}}, "guided_json"),
        (COMPLETION, {"model": 5}, "model"),
        (COMPLETION, {"cache_salt": ""}, "cache_salt"),
        (CHAT, {"messages": None}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "hi"}, "messages"),
        (CHAT, {"messages": [{"role": "alien", "content": "x"}]}, "messages.0.role"),
        (CHAT, {"messages": [{"role": "user"}]}, "messages.0"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages.0.tool_calls.0.function",
        ),
        (CHAT, {"logprobs": 1}, "logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"max_tokens": 0}, "max_tokens"),
        (CHAT, {"chat_template": "{{ messages }}"}, "chat_template"),
        (CHAT, {"tools": [{"type": "function"}]}, "tools.0.function"),
        (CHAT, {"tool_choice": "required"}, "tool_choice"),
        (CHAT, {"response_format": {"type": "yaml"}}, "response_format"),
        (CHAT, {"response_format": {"type": "json_schema"}}, "response_format"),
        (CHAT, {"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        (CHAT, {"structured_outputs": {"choice": []}}, "structured_outputs"),
        (CHAT, {"guided_json": {}}, "guided_json"),
        (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
        (CHAT, {"chat_template_kwargs": {"messages": []}}, "messages"),
    ],
)
def test_bad_requests(
    http: httpx.Client, base: dict[str, Any], change: dict[str, Any], param: str | None
) -> None:
    body = {key: value for key, value in {**base, **change}.items() if value is not None}
    response = http.post("/v1/chat/completions" if base is CHAT else "/v1/completions", json=body)
    error = error_of(response, 400)
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
        assert param.split(".")[0] in error["message"]


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    "neutral",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "best_of": 1, "logprobs": None},
        {"user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "suffix": None},
        {"echo": None, "n": None, "stop": None, "min_tokens": None, "seed": None, "temperature": None},
    ],
)
def test_neutral_values_are_accepted(http: httpx.Client, neutral: dict[str, Any]) -> None:
    assert http.post("/v1/completions", json=COMPLETION | neutral).status_code == 200


def test_neutral_values_are_accepted_in_chat(http: httpx.Client) -> None:
    neutral: dict[str, Any] = {"tool_choice": "none", "response_format": {"type": "text"}}
    neutral |= {"logprobs": False, "top_logprobs": 0, "echo": False, "add_special_tokens": False}
    assert http.post("/v1/chat/completions", json=CHAT | neutral).status_code == 200


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.completions.create(model="nope", prompt="a")
    assert refused.value.code == "model_not_found"
    assert refused.value.param == "model"
    # As in vLLM: clients that are set up for one server leave the field empty.
    assert client.completions.create(model="", prompt="a", max_tokens=1).model == MODEL


def test_context_overflow_names_the_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt="a" * 500, max_tokens=100)
    assert refused.value.code == "context_length_exceeded"
    for number in ("512", "601", "501", "100"):
        assert number in refused.value.message
    with pytest.raises(openai.BadRequestError, match="maximum context length is 512"):
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a" * 600}])


def test_the_last_token_of_the_context_can_be_generated(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="a" * 510)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 512


def test_megabytes_are_refused_before_they_are_tokenized(http: httpx.Client) -> None:
    error = error_of(http.post("/v1/completions", json={"prompt": "x" * 5_000_000}), 400)
    assert error["code"] == "context_length_exceeded"
    assert "at least" in error["message"]
    error_of(http.post("/v1/completions", content=b" " * (17 * 2**20)), 413)


def test_chunked_bodies_are_limited_too(http: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(17):
            yield b" " * 2**20

    try:
        response = http.post(
            "/v1/completions", content=chunks(), headers={"content-type": "application/json"}
        )
    except httpx.WriteError:  # the server closed while we were sending
        return
    error_of(response, 413)


@pytest.mark.parametrize("content", [b"{", b"[]", b'"x"', b"", b"\xff\xfe", b'{"prompt": NaN}'])
def test_bodies_that_are_no_request(http: httpx.Client, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    error_of(http.post("/v1/completions", content=content, headers=headers), 400)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/completions", b'{"prompt": "\\ud800"}'),
        ("/v1/completions", b'{"prompt": "a", "\\ud800": 1}'),
        ("/v1/completions", b'{"prompt": "a", "stop": "\\udfff"}'),
        (
            "/v1/chat/completions",
            b'{"messages": [{"role": "user", "content": "\\ud83d", "name": "\\ud83d"}]}',
        ),
        ("/v1/completions", b'{"prompt": ' + b"[" * 100_000),
        ("/tokenize", b'{"prompt": "\\ud800"}'),
    ],
)
def test_text_that_is_no_unicode(http: httpx.Client, path: str, content: bytes) -> None:
    response = http.post(path, content=content, headers={"content-type": "application/json"})
    assert "JSON" in error_of(response, 400)["message"]


def test_routes_that_do_not_exist(http: httpx.Client) -> None:
    error_of(http.get("/v1/nothing"), 404)
    response = http.get("/v1/completions")
    error_of(response, 405)
    assert response.headers["allow"] == "POST"


# --- the rest ---------------------------------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    rows = client.models.list().data
    assert [row.id for row in rows] == [MODEL, "other/name"]
    row = client.models.retrieve("other/name")
    assert row.object == "model"
    assert row.owned_by
    assert row.model_dump()["max_model_len"] == 512
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_tokenize_and_back(http: httpx.Client) -> None:
    answer = http.post("/tokenize", json={"prompt": "the é", "return_token_strs": True}).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 512
    back = http.post("/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"prompt": "<|bos|>the é"}
    bare = http.post("/tokenize", json={"prompt": "the é", "add_special_tokens": False}).json()
    assert bare["tokens"] == answer["tokens"][1:]
    chat = http.post("/tokenize", json={"messages": HI}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": chat}).json()["prompt"] == PROMPT
    error_of(http.post("/tokenize", json={}), 400)
    error_of(http.post("/detokenize", json={"tokens": ["a"]}), 400)
    for id_ in (-1, 2**31 - 1):
        assert f"{id_}" in http.post("/detokenize", json={"tokens": [1, id_]}).text
        error_of(http.post("/detokenize", json={"tokens": [1, id_]}), 400)


def test_tokens_of_more_than_the_context_are_counted(http: httpx.Client) -> None:
    """vllm#20409: how much is too much is what a client wants to know before it cuts a text."""
    text = "x" * 100_000
    assert http.post("/tokenize", json={"prompt": text}).json()["count"] == 100_001
    chat = http.post("/tokenize", json={"messages": [{"role": "user", "content": text}]})
    assert chat.json()["count"] > 100_000
    assert chat.json()["max_model_len"] == 512


async def test_ids_of_clients_may_be_equal(served: Served) -> None:
    """vllm#10583: two requests of one id at a time broke the engine."""
    body = {"request_id": "mine", "max_tokens": 39, "n": 2}
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as http:
        texts = ("ab", "cd", "ef")
        asked = [http.post("/v1/completions", json=body | {"prompt": text}) for text in texts]
        answers = [answer.json() for answer in await asyncio.gather(*asked)]
        chat = await http.post("/v1/chat/completions", json=body | {"messages": HI, "stream": True})
        response = await http.post("/v1/responses", json={"request_id": "mine", "input": "a"})
        bad = await http.post("/v1/completions", json=body | {"prompt": "a", "request_id": "a b\n"})
    assert [answer["id"] for answer in answers] == ["cmpl-mine"] * 3
    assert [[c["text"] for c in answer["choices"]] for answer in answers] == [[t * 13] * 2 for t in texts]
    assert chat.text.count('"id":"chatcmpl-mine"') == chat.text.count("data: {")
    assert response.json()["id"] == "mine"
    assert error_of(bad, 400)["param"] == "request_id"


def test_max_completion_tokens_beats_max_tokens(http: httpx.Client) -> None:
    for beaten in (0, 1, 100_000):
        body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": beaten}
        answer = http.post("/v1/chat/completions", json=body | {"max_completion_tokens": 3})
        assert answer.json()["usage"]["completion_tokens"] == 3


def test_operations(http: httpx.Client) -> None:
    assert http.get("/health").status_code == 200
    assert http.get("/ready").status_code == 200
    assert http.get("/version").json()["version"]
    schema = http.get("/openapi.json").json()
    assert "/v1/chat/completions" in schema["paths"]
    assert "temperature" in schema["components"]["schemas"]["ChatCompletionRequest"]["properties"]


def test_keep_alive_connections_are_reused(http: httpx.Client) -> None:
    for _ in range(3):
        response = http.post("/v1/completions", json=COMPLETION | {"stream": True})
        assert "connection" not in response.headers


def test_invocations(http: httpx.Client) -> None:
    """SageMaker's one route, in a stream too."""
    chat = {"messages": HI, "max_tokens": 4, "request_id": "one"}
    answer = http.post("/invocations", json=chat).json()
    assert (answer["id"], answer["object"]) == ("chatcmpl-one", "chat.completion")
    told = http.post("/invocations", json={"prompt": "hello", "max_tokens": 12, "echo": True}).json()
    assert told["choices"][0]["text"] == "hellohellohello"
    assert http.post("/invocations", json={"input": "hi"}).json()["object"] == "response"
    with http.stream("POST", "/invocations", json=chat | {"stream": True}) as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["id"] == "chatcmpl-one"
    for content in (b"", b"{", b"[]", b"5", b"{}", b'{"inputs": "a"}', b'{"messages": []}', b'{"prompt": 5}'):
        refused = http.post("/invocations", content=content, headers={"content-type": "application/json"})
        assert refused.status_code == 400, content
    assert refused.json()["error"]["param"] == "prompt"  # as the route that was meant says it
    assert http.get("/invocations").status_code == 405


def test_ping(http: httpx.Client) -> None:
    for method in ("GET", "POST", "HEAD"):
        answer = http.request(method, "/ping")
        assert (answer.status_code, answer.content) == (200, b"")


def test_api_key(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path, "--api-key", "secret", "--served-model-name", MODEL) as server:
        server.wait_ready()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client:
            assert client.completions.create(model=MODEL, prompt="a").choices
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                client.models.list()
            assert refused.value.code == "invalid_api_key"
        error_of(httpx.get(f"{server.url}/v1/models"), 401)
        assert httpx.post(f"{server.url}/invocations", json={"prompt": "a"}).status_code == 401
        for path in ("/health", "/ready", "/ping", "/metrics", "/version"):
            assert server.status(path) == 200
