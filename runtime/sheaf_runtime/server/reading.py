"""How the text of a chat's answers is to be read: which parser, and what of it the request wants to see."""

from __future__ import annotations

import secrets
import string
from collections.abc import Sequence

from sheaf_runtime.parsers import (
    TOOLS,
    Arguments,
    CallBegun,
    CallBroken,
    Event,
    Parser,
    Thought,
    in_channels,
    output_parser,
    tool_calls,
    visible_marks,
)
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.schemas import ChatCompletionRequest
from sheaf_runtime.server.service import Service
from sheaf_runtime.server.tools import NamedTool, schemas

_LETTERS = string.ascii_letters + string.digits


class Reading:
    """Of all choices of one request. Raises ``ApiError`` 400 where no parser knows the model's calls.

    Attributes:
        visible: special tokens that have to be in the text.
        prompt: the chat as the model sees it.
        in_channels: whether the answers come in gpt-oss's channels.
        is_held: whether a grammar holds the answers; set before the first is read.
        tool_parser, reasoning_parser: their names; without tools the former means nothing.
    """

    def __init__(self, service: Service, body: ChatCompletionRequest, prompt: str) -> None:
        choice = body.choice_of_tools
        self.prompt = prompt
        self.reasoning_parser = service.server_config.reasoning_parser
        self._calls = schemas(body.callable_tools) if choice != "none" else None
        self._choice = choice
        name = service.tool_parser
        self.in_channels = in_channels(name if self._calls is not None else None, self.reasoning_parser)
        if self.in_channels:
            name = "openai"
        if choice == "auto" and name is None:
            raise ApiError(
                400,
                "tool_choice: auto needs to know how this model writes its calls, and its chat template does "
                "not tell; start the server with --tool-call-parser",
                param="tool_choice",
            )
        self.tool_parser = name or "json"
        self.is_held = False
        self._id_length = TOOLS[name].id_length if name else None
        self._only_one = not body.parallel_tool_calls
        self._hides_thoughts = not body.include_reasoning
        marks = visible_marks(None if self._calls is None else self.tool_parser, self.reasoning_parser)
        self.visible = service.folder.tokenizer.special_ids_of(marks)

    @property
    def needed(self) -> bool:
        """Whether the text is anything but content."""
        return self._calls is not None or self.tells_thoughts

    @property
    def tells_thoughts(self) -> bool:
        return self.reasoning_parser is not None

    def reader(self) -> Reader:
        """For one choice."""
        calls: Parser | None = None
        if self._calls is not None:
            calls = tool_calls(self.tool_parser, self._calls, demanded=self._choice != "auto")
        parser = output_parser(self.reasoning_parser, calls, self.prompt, held=self.is_held)
        return Reader(
            parser,
            only_one=self._only_one,
            hides_thoughts=self._hides_thoughts,
            calls_finish=not isinstance(self._choice, NamedTool),
        )

    def new_call_id(self) -> str:
        if self._id_length is not None:
            return "".join(secrets.choice(_LETTERS) for _ in range(self._id_length))
        return f"call_{secrets.token_hex(12)}"


class Reader:
    """Reads one choice's text.

    Attributes:
        thought_tokens: how many tokens were spent on thoughts.
    """

    def __init__(self, parser: Parser, *, only_one: bool, hides_thoughts: bool, calls_finish: bool) -> None:
        self._parser = parser
        self._only_one, self._hides_thoughts = only_one, hides_thoughts
        self._calls_finish = calls_finish  # OpenAI: a function that was named ends with "stop"
        self._num_calls = 0
        self._skips = False  # the call that is read now
        self.thought_tokens = 0

    @property
    def finishes_with_calls(self) -> bool:
        return self._calls_finish and self._num_calls > 0

    def push(self, text: str, num_tokens: int) -> list[Event]:
        before = self._parser.thinking
        events = self._parser.push(text)
        if before and self._parser.thinking:
            self.thought_tokens += num_tokens
        return self._wanted(events)

    def finish(self, *, ended: bool) -> list[Event]:
        return self._wanted(self._parser.finish(ended=ended))

    def _wanted(self, events: Sequence[Event]) -> list[Event]:
        """Without the thoughts if they are hidden, and without calls behind the first if one is the most."""
        wanted: list[Event] = []
        for event in events:
            if isinstance(event, CallBegun):
                self._skips = self._only_one and self._num_calls > 0
                self._num_calls += not self._skips
            elif isinstance(event, CallBroken):
                self._num_calls -= not self._skips
            if isinstance(event, CallBegun | CallBroken | Arguments):
                if not self._skips:
                    wanted.append(event)
            elif not (self._hides_thoughts and isinstance(event, Thought)):
                wanted.append(event)
        return wanted
