"""Chat templates: sandboxed Jinja with the helpers that Hugging Face templates may use."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.resources.abc import Traversable
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from sheaf_runtime.text.tokenizer import read_json, read_text

Message = Mapping[str, Any]
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
# Whose words need not be in the prompt: templates leave thoughts out, and rewrite what a tool has answered.
REWRITTEN = frozenset({"assistant", "tool", "function"})
_MARK = "sheafprobe"
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_OTHER_IDS = ("call_0123456789abcdef01234567", "turn1_0")


class ChatTemplateError(ValueError):
    """The template cannot be compiled, or refuses these messages."""


class ChatTemplate:
    """A compiled template, rendered with the tokenizer's special tokens.

    ``for_tools`` takes its place where a chat has tools, if the model brings one of its own for that.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, Any] | None = None,
        *,
        for_tools: str | None = None,
    ) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the chat template is not valid Jinja: {error}") from error
        self._special_tokens = dict(special_tokens or {})
        self._in_parts = False
        self._in_parts = self._reads_parts()
        self._arguments_as_text, self._arguments_as_object = self._forms_of_arguments()
        self._short_ids = self._refuses_long_ids()
        self._knows_developer = "developer" in source
        self._for_tools = None if for_tools is None else ChatTemplate(for_tools, special_tokens)
        self.source = source if for_tools is None else source + for_tools

    @classmethod
    def from_folder(cls, folder: Traversable, special_tokens: Mapping[str, Any]) -> ChatTemplate | None:
        """The model's own template (``chat_template.jinja`` and, for tools, in ``additional_chat_templates``;
        else in ``tokenizer_config.json``), or None. Raises ``ChatTemplateError`` or ``TokenizerError``."""
        path = folder / "chat_template.jinja"
        if path.is_file():
            more = folder / "additional_chat_templates" / "tool_use.jinja"
            for_tools = read_text(more) if more.is_file() else None
            return cls(read_text(path), special_tokens, for_tools=for_tools)
        path = folder / "tokenizer_config.json"
        source = read_json(path).get("chat_template")
        named = {"default": source}
        if isinstance(source, list):  # several, by name
            if not all(isinstance(entry, dict) and {"name", "template"} <= entry.keys() for entry in source):
                raise ChatTemplateError(f"{path}: each of several chat templates needs a name and a template")
            named = {entry["name"]: entry["template"] for entry in source}
        given = [named.get("default"), named.get("tool_use")]
        if not all(template is None or isinstance(template, str) for template in given):
            raise ChatTemplateError(f"{path}: chat_template must be a text, or a list of named ones")
        return None if given[0] is None else cls(given[0], special_tokens, for_tools=given[1])

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text, special tokens included: encode it without adding them again.

        ``continue_final_message`` leaves the last message open, so that the model goes on writing it.
        ``tools`` are the functions that the model may call, ``documents`` what templates for retrieval quote
        from, ``variables`` the template's own options. Raises ``ChatTemplateError``.
        """
        if tools and self._for_tools is not None:
            return self._for_tools.render(
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                documents=documents,
                variables=variables,
            )
        if reserved := RESERVED & (variables or {}).keys():
            raise ChatTemplateError(f"{sorted(reserved)[0]!r} cannot be set as a template variable")
        variables = {
            "tools": list(tools) if tools else None,
            "documents": list(documents) if documents else None,
            **(variables or {}),
        }
        messages = [self._in_its_terms(message) for message in messages]
        if continue_final_message:
            if add_generation_prompt:
                raise ChatTemplateError("set one of continue_final_message and add_generation_prompt")
            return self._render_open(messages, variables)
        return self._render(messages, add_generation_prompt, variables)

    def names(self, role: str) -> bool:
        """Whether it looks for this role."""
        return f'"{role}"' in self.source or f"'{role}'" in self.source

    def _in_its_terms(self, message: Message) -> Message:
        """A template that has never heard of "developer", OpenAI's newer name for the system, skips it."""
        if message["role"] == "developer" and not self._knows_developer:
            return {**message, "role": "system"}
        if self._arguments_as_text and "tool_calls" in message:
            message = {
                **message,
                "tool_calls": [_with_text_arguments(call) for call in message["tool_calls"]],
            }
        elif self._arguments_as_object and "tool_calls" in message:
            message = {
                **message,
                "tool_calls": [_with_object_arguments(call) for call in message["tool_calls"]],
            }
        return _with_short_ids(message) if self._short_ids else message

    def _reads_parts(self) -> bool:
        """Whether content must be a list of parts: some templates walk through it, and past a plain text."""

        def seen(content: Any) -> bool:
            try:
                return _MARK in self._render([{"role": "user", "content": content}], True, {"tools": None})
            except ChatTemplateError:
                return False

        return not seen(_MARK) and seen(_parts(_MARK))

    def _forms_of_arguments(self) -> tuple[bool, bool]:
        """Whether it wants the arguments of a call as JSON text, because it would write an object as Python
        does; and whether it wants an object, because it walks through its fields."""
        call = {"id": "123456789", "type": "function", "function": {"name": "f", "arguments": {_MARK: 1}}}
        user: Message = {"role": "user", "content": "a"}
        called = {"role": "assistant", "content": ""}

        def written(call: Message) -> str:
            try:
                return self._render([user, {**called, "tool_calls": [call]}], False, {"tools": None})
            except ChatTemplateError:
                return ""

        as_object, as_text = written(call), written(_with_text_arguments(call))
        only_text = f"{{'{_MARK}'" in as_object or (not as_object and _MARK in as_text)
        return only_text, _MARK in as_object and _MARK not in as_text

    def _refuses_long_ids(self) -> bool:
        """Whether ids of calls must be nine letters and digits, as Mistral's templates have it: ids of other
        servers, and those that agents make up, are longer or shorter."""

        def rendered(id_: str) -> bool:
            call = {"id": id_, "type": "function", "function": {"name": "f", "arguments": {}}}
            chat: list[Message] = [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "b", "tool_call_id": id_},
            ]
            if self._arguments_as_text:
                chat[1] = {**chat[1], "tool_calls": [_with_text_arguments(call)]}
            try:
                self._render(chat, True, {"tools": None})
            except ChatTemplateError:
                return False
            return True

        return not all(map(rendered, _OTHER_IDS)) and rendered("123456789")

    def _render(self, messages: Sequence[Message], generation: bool, variables: Mapping[str, Any]) -> str:
        names = {**self._special_tokens, **variables}
        if self._in_parts:
            messages = [
                {**message, "content": _parts(message["content"])}
                if isinstance(message.get("content"), str)
                else message
                for message in messages
            ]
        try:
            return self._template.render(messages=messages, add_generation_prompt=generation, **names)
        except Exception as error:  # a template is a program: any error in it is about these messages
            raise ChatTemplateError(f"the chat template cannot render these messages: {error}") from error

    def _render_open(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        """Marks the end of the last message's text and cuts the rendered prompt there."""
        content = messages[-1].get("content") if messages else None
        if not isinstance(content, str):
            raise ChatTemplateError("continue_final_message needs a last message with text to continue")
        mark = "\u2063sheaf:open\u2063"
        # The blank after the mark tells whether the template trims the text of a message.
        last = {**messages[-1], "content": f"{content}{mark} "}
        rendered = self._render([*messages[:-1], last], False, variables)
        head, found, tail = rendered.rpartition(mark)
        if not found:
            raise ChatTemplateError("this chat template does not render the last message, so it cannot go on")
        return head if tail.startswith(" ") else head.rstrip()


def _parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


def _with_short_ids(message: Message) -> Message:
    if calls := message.get("tool_calls"):
        calls = [{**call, "id": _short_id(call["id"])} if "id" in call else call for call in calls]
        message = {**message, "tool_calls": calls}
    if isinstance(id_ := message.get("tool_call_id"), str):
        message = {**message, "tool_call_id": _short_id(id_)}
    return message


def _short_id(id_: str) -> str:
    """The same for the same id, so that a call and its result go together and a chat's prefix stays."""
    if _SHORT_ID.fullmatch(id_):
        return id_
    return hashlib.sha256(id_.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}


def _with_object_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    """Text that is no object becomes the one field of one: its words are in the prompt, the chat goes on."""
    function = call["function"]
    arguments = function["arguments"]
    fields = {"arguments": arguments} if isinstance(arguments, str) else arguments
    return {**call, "function": {**function, "arguments": fields}}


def left_out(
    messages: Sequence[Message], prompt: str, render: Callable[[Sequence[Message]], str]
) -> int | None:
    """Index of the first message that the template has no place for: it may not know the role, or look for
    content where there is none. ``render`` writes other messages as ``prompt`` was written.

    Words that are in the prompt have a place; blanks do not count, and JSON's escapes are allowed. Others may
    have been rewritten (templates take switches like "/no_think" out), so a word is added to them and looked
    for.
    """
    without_blanks = None
    for index, message in enumerate(messages):
        text = message.get("content")
        if message["role"] in REWRITTEN or not isinstance(text, str) or text.strip() in prompt:
            continue
        if without_blanks is None:
            without_blanks = "".join(prompt.split())
        forms = (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1])
        if any("".join(form.split()) in without_blanks for form in forms):
            continue
        marked = {**message, "content": f"{_MARK} {text} {_MARK}"}
        if _MARK not in render([*messages[:index], marked, *messages[index + 1 :]]).lower():
            return index
    return None


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's own words for training; here it is only a block."""

    tags = {"generation"}  # noqa: RUF012 (the base class's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which prompts must not."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format_: str) -> str:
    return datetime.now().strftime(format_)
