"""Our rendering of chat templates against that of transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from model_folders import CHAT_TEMPLATE, byte_fallback, byte_level, write_folder
from sheaf_runtime.server.messages import Message as ServerMessage
from sheaf_runtime.text import ChatTemplate, ChatTemplateError, Tokenizer, TokenizerError, left_out
from transformers import PreTrainedTokenizerFast

MESSAGES = [
    {"role": "system", "content": "Be <brief> & 'kind'."},
    {"role": "user", "content": "Say é世 \n twice  "},
    {"role": "assistant", "content": "  yes, and "},
]
RICH = """{%- if not messages -%}{{ raise_exception('no messages') }}{%- endif -%}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {{- bos_token if loop.first else '' }}[{{ message.role }}] {{ message | tojson }}
    {%- if message.role == 'assistant' %}
        {% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
{{- {'b': 1, 'a': ['é', '<']} | tojson(indent=2) }} {{ strftime_now('%Y') }} {{ tools is none }} {{ missing }}
{%- if mood is defined %} mood={{ mood }}{% endif %}
{%- if add_generation_prompt %}
[assistant]{% endif %}
"""


def theirs(template: str, messages: list[dict[str, str]], **options: Any) -> str:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), bos_token="<|bos|>", eos_token="<|end|>", chat_template=template
    )
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return text


def ours(template: str) -> ChatTemplate:
    return ChatTemplate(template, {"bos_token": "<|bos|>", "eos_token": "<|end|>"})


@pytest.mark.parametrize(
    ("template", "options"),
    [
        (CHAT_TEMPLATE, {"add_generation_prompt": True}),
        (CHAT_TEMPLATE, {"add_generation_prompt": False}),
        (CHAT_TEMPLATE, {"add_generation_prompt": False, "continue_final_message": True}),
        (RICH, {"add_generation_prompt": True}),
        (RICH, {"add_generation_prompt": False}),
    ],
)
def test_same_as_transformers(template: str, options: dict[str, Any]) -> None:
    assert ours(template).render(MESSAGES, **options) == theirs(template, MESSAGES, **options)


def test_template_variables() -> None:
    mine = ours(RICH).render(MESSAGES, variables={"mood": "good"})
    assert mine == theirs(RICH, MESSAGES, add_generation_prompt=True, mood="good")
    assert "mood=good" in mine


def test_continued_text_is_kept_where_the_template_does_not_trim() -> None:
    template = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
    options = {"add_generation_prompt": False, "continue_final_message": True}
    assert ours(template).render(MESSAGES, **options).endswith("[  yes, and ")
    assert ours(template).render(MESSAGES, **options) == theirs(template, MESSAGES, **options)


@pytest.mark.parametrize(
    ("template", "options", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", {}, "roles must alternate"),
        ("{{ messages[0].content.__class__.__mro__ }}", {}, "unsafe"),
        ("{{ 1 / 0 }}", {}, "division"),
        (CHAT_TEMPLATE, {"variables": {"tools": []}}, "cannot be set"),
        (CHAT_TEMPLATE, {"continue_final_message": True}, "set one of"),
        ("fixed", {"add_generation_prompt": False, "continue_final_message": True}, "does not render"),
    ],
)
def test_refusals_say_why(template: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ChatTemplateError, match=reason):
        ours(template).render(MESSAGES, **options)


NINE = """
{%- for message in messages %}
  {%- if message.role == 'assistant' and message.tool_calls %}
    {%- for call in message.tool_calls %}
      {%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
      {{- '[CALL]' + (call.function | tojson) + call.id }}
    {%- endfor %}
  {%- elif message.role == 'tool' %}
    {%- if not message.tool_call_id is defined or message.tool_call_id | length != 9 %}
      {{- raise_exception('ids have nine characters') }}
    {%- endif %}
    {{- '[RESULT]' + message.content + message.tool_call_id }}
  {%- else %}{{ message.content }}{% endif %}
{%- endfor %}"""


@pytest.mark.parametrize(
    "id_", ["call_0fypS1hVX", "turn1_0", "38f04d9ea185424a8dc6ed9a88da5", "é" * 9, "\ud800", "Abc123xyz"]
)
def test_ids_of_calls_are_as_long_as_the_template_wants_them(id_: str) -> None:
    """vLLM#9019, mlx-lm#1375, omlx#1997: the second turn of every chat with tools was refused."""
    call = {"id": id_, "type": "function", "function": {"name": "f", "arguments": {}}}
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": id_ + "2"}]},
        {"role": "tool", "content": "b", "tool_call_id": id_},
    ]
    prompt = ours(NINE).render(chat)
    first, second = re.findall(r"\}([A-Za-z0-9]{9})(?=\[)", prompt)
    assert prompt.endswith(f"[RESULT]b{first}")
    assert first != second
    assert (first == id_) == (id_ == "Abc123xyz")
    assert ours(NINE).render(chat) == prompt
    # Where any id will do it stays as it is, and what has none is not given one.
    free = NINE.replace("length != 9", "length == 0")
    assert ours(free).render(chat).endswith(f"[RESULT]b{id_}")
    with pytest.raises(ChatTemplateError, match="nine characters"):
        ours(NINE).render([chat[0], {"role": "tool", "content": "b"}])


def test_broken_template() -> None:
    with pytest.raises(ChatTemplateError, match="not valid Jinja"):
        ChatTemplate("{% if %}")


def test_where_a_folder_keeps_its_template(tmp_path: Path) -> None:
    several = [{"name": "rag", "template": "no"}, {"name": "default", "template": "from the list"}]
    folder = write_folder(tmp_path, byte_level(), chat_template=several)
    template = ChatTemplate.from_folder(folder, {})
    assert template is not None
    assert template.render(MESSAGES) == "from the list"
    (folder / "chat_template.jinja").write_text("from the file")
    template = ChatTemplate.from_folder(folder, {})
    assert template is not None
    assert template.render(MESSAGES) == "from the file"
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("with tools")
    template = ChatTemplate.from_folder(folder, {})
    assert template is not None
    assert template.render(MESSAGES) == "from the file"
    assert template.render(MESSAGES, tools=[{"type": "function"}]) == "with tools"
    bare = write_folder(tmp_path / "bare", byte_level(), chat_template=None)
    assert ChatTemplate.from_folder(bare, {}) is None


@pytest.mark.parametrize("written", [5, [5], [{"name": "default"}], [{"name": "default", "template": 5}]])
def test_what_is_no_template_is_refused_by_name(tmp_path: Path, written: Any) -> None:
    folder = write_folder(tmp_path, byte_level(), chat_template=written)
    with pytest.raises(ChatTemplateError, match=r"tokenizer_config\.json"):
        ChatTemplate.from_folder(folder, {})


NEW = {"content": "<|new|>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}


@pytest.mark.parametrize(
    ("written", "more"),
    [
        ({"eos_token": "<|new|>"}, {}),
        ({"added_tokens_decoder": {"267": NEW | {"single_word": False}}}, {}),
        ({"additional_special_tokens": ["<|new|>"]}, {}),
        ({"extra_special_tokens": {"image_token": "<|new|>"}}, {}),
        ({}, {"added_tokens.json": {"<|new|>": 267}}),
        ({}, {"special_tokens_map.json": {"additional_special_tokens": ["<|new|>"]}}),
    ],
)
def test_tokens_that_are_named_beside_the_tokenizer(tmp_path: Path, written: Any, more: Any) -> None:
    """microsoft/onnxruntime-extensions#890: people add tokens to ``tokenizer_config.json`` alone."""
    folder = write_folder(tmp_path, byte_level(), **written)
    for name, content in more.items():
        (folder / name).write_text(json.dumps(content))
    mine = Tokenizer.from_folder(folder)
    other = PreTrainedTokenizerFast.from_pretrained(folder)
    ids = mine.encode("hello<|new|>x<|end|>")
    assert 267 in ids
    assert ids == other.encode("hello<|new|>x<|end|>")
    for skip in (True, False):
        decoded = other.decode(ids, skip_special_tokens=skip)
        assert mine.decode(ids, skip_special_tokens=skip) == decoded


def test_added_tokens_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level(), added_tokens_decoder={"first": {"content": "a"}})
    with pytest.raises(TokenizerError, match="added tokens cannot be read"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize("build", [byte_level, byte_fallback])
def test_token_ids_are_those_of_transformers(build: Any, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, build())
    mine = Tokenizer.from_folder(folder)
    other = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in ("hello the 世界 😀", "", "  a", "<|turn|>user<|end|>"):
        assert mine.encode(text) == other.encode(text)
        assert mine.encode(text, add_special_tokens=False) == other.encode(text, add_special_tokens=False)
    assert mine.special_tokens == {"bos_token": "<|bos|>", "eos_token": "<|end|>"}


WALKS_PARTS = (
    "{% for m in messages %}<{{ m['role'] }}>{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
BOTH = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}[{{ part['text'] }}]{% endfor %}{% endif %}{% endfor %}"
)
ONLY_KNOWN_ROLES = (
    "{% for m in messages %}{% if m['role'] in ('system', 'user') %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% endif %}{% endfor %}"
)


def test_a_template_that_walks_through_parts_gets_them() -> None:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert ChatTemplate(WALKS_PARTS).render(messages) == "<system>be kind<user>hello"
    assert ChatTemplate(BOTH).render(messages) == "be kindhello"


def test_continuing_with_a_template_that_walks_through_parts() -> None:
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "I am"}]
    rendered = ChatTemplate(WALKS_PARTS).render(
        messages, add_generation_prompt=False, continue_final_message=True
    )
    assert rendered == "<user>hello<assistant>I am"


def test_a_developer_is_the_system_where_the_template_knows_no_other() -> None:
    messages = [{"role": "developer", "content": "be kind"}]
    assert ChatTemplate(ONLY_KNOWN_ROLES).render(messages) == "<system>be kind"
    assert ChatTemplate("{{ messages[0]['role'] }}{# developer #}").render(messages) == "developer"


def test_words_that_a_template_leaves_out_are_noticed() -> None:
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": 'say "é"\n twice '},
        {"role": "assistant", "content": "<think>hm</think>é é"},
        {"role": "user", "content": "  "},
    ]
    for template, index in (
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", None),
        ("{% for m in messages %}{{ m | tojson }}{% endfor %}", None),
        ("{% for m in messages if m['role'] != 'assistant' %}{{ m['content'] | trim }}{% endfor %}", None),
        ("{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}", 0),
        ("{{ messages[0]['content'] }}", 1),
    ):
        render = ChatTemplate(template).render
        assert left_out(messages, render(messages), render) == index, template


def test_words_that_a_template_rewrites_are_not_left_out() -> None:
    """SmolLM3's and Nemotron's templates take their switches out of the system's and the user's words."""
    takes_out = (
        "{% for m in messages %}<{{ m['role'] }}>"
        "{{ m['content'].replace('/no_think', '').replace('/think', '').strip() | upper }}{% endfor %}"
        "{% if '/no_think' in messages[0]['content'] %}<think></think>{% endif %}"
    )
    messages = [{"role": "system", "content": "/no_think"}, {"role": "user", "content": "hello /think you"}]
    render = ChatTemplate(takes_out).render
    assert render(messages) == "<system><user>HELLO  YOU<think></think>"
    assert left_out(messages, render(messages), render) is None


# As Qwen3-Coder's and GLM's templates do; Qwen3's take any value.
WALKS = (
    "{% for m in messages %}{{ m['content'] }}{% for c in m.tool_calls or [] %}"
    "{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}{% endfor %}{% endfor %}{% endfor %}"
)
WRITES = WALKS.replace(
    "{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}{% endfor %}",
    "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}",
)


@pytest.mark.parametrize(
    ("template", "arguments", "expected"),
    [
        (WALKS, '{"a": 1}', "<a>1"),
        (WALKS, '{"cmd": "ls', '<arguments>{"cmd": "ls'),
        (WALKS, '["a"]', '<arguments>["a"]'),
        (WALKS, '"a"', '<arguments>"a"'),
        (WALKS, "", ""),
        (WALKS, " \n", ""),
        (WRITES, '{"cmd": "ls', '{"cmd": "ls'),
        (WRITES, '["a"]', '["a"]'),
        (WRITES, "", "{}"),
    ],
)
def test_arguments_that_are_no_object(template: str, arguments: str, expected: str) -> None:
    """vllm#48922, #19419, sglang#28035: a call that a model got wrong, or was cut off in, is in the chat for
    ever; each later turn was refused."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = ServerMessage.model_validate({"role": "assistant", "content": "x", "tool_calls": [call]})
    assert ChatTemplate(template).render([message.for_template()]) == f"x{expected}"
