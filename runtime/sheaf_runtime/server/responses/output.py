"""The items of a response's output, as they grow, and the events that tell of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Any, Literal

from sheaf_runtime.parsers import Arguments, CallBegun, CallBroken, Event, Thought

Fields = dict[str, Any]
Status = Literal["completed", "incomplete"]
_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}


class Output:
    """``take`` events and ``finish``: both give stream events, without their numbers.

    Attributes:
        items: what has come so far; one at most is under way.
    """

    def __init__(self, new_call_id: Callable[[], str], *, streams: bool) -> None:
        self._new_call_id = new_call_id
        self._streams = streams
        self._open = False
        self.items: list[Fields] = []

    def take(self, events: Iterable[Event], logprobs: list[Fields]) -> list[Fields]:
        """``logprobs`` are those of the tokens of these events' content."""
        news: list[Fields] = []
        for event in events:
            if isinstance(event, CallBroken):
                news += self._break()
            elif isinstance(event, CallBegun):
                news += self._close("completed")
                call_id = self._new_call_id()
                call = {"type": "function_call", "call_id": call_id, "name": event.name, "arguments": ""}
                news += self._begin("fc", call)
            elif isinstance(event, Arguments):
                self.items[-1]["arguments"] += event.text
                news.append(self._news("function_call_arguments.delta", delta=event.text))
            else:
                kind = "reasoning" if isinstance(event, Thought) else "message"
                news += self._say(kind, event.text, logprobs if kind == "message" else [])
        return news

    def finish(self, status: Status) -> list[Fields]:
        return self._close(status)

    def _say(self, kind: str, text: str, logprobs: list[Fields]) -> list[Fields]:
        news: list[Fields] = []
        if not self._open or self.items[-1]["type"] != kind:
            news = self._close("completed")
            if kind == "message":
                news += self._begin("msg", {"type": kind, "role": "assistant", "content": []})
            else:
                news += self._begin("rs", {"type": kind, "summary": [], "content": []})
            part: Fields = {"type": _PARTS[kind], "text": ""}
            if kind == "message":
                part |= {"annotations": [], "logprobs": []}
            news.append(self._news("content_part.added", content_index=0, part=part))
            self.items[-1]["content"].append({**part, "logprobs": []} if kind == "message" else {**part})
        part = self.items[-1]["content"][0]
        part["text"] += text
        if kind == "message":
            part["logprobs"] += logprobs
            news.append(self._news("output_text.delta", content_index=0, delta=text, logprobs=logprobs))
        else:
            news.append(self._news("reasoning_text.delta", content_index=0, delta=text))
        return news

    def _begin(self, prefix: str, item: Fields) -> list[Fields]:
        item = {"id": f"{prefix}_{uuid.uuid4().hex}", "status": "in_progress", **item}
        self.items.append(item)
        self._open = True
        return [self._news("output_item.added", item=_copy(item))]

    def _close(self, status: Status) -> list[Fields]:
        if not self._open:
            return []
        self._open = False
        item = self.items[-1]
        item["status"] = status
        if item["type"] == "function_call":
            whole = {"name": item["name"], "arguments": item["arguments"]}
            news = [self._news("function_call_arguments.done", **whole)]
        else:
            part = item["content"][0]
            if item["type"] == "message":
                done = {"text": part["text"], "logprobs": part["logprobs"]}
                news = [self._news("output_text.done", content_index=0, **done)]
            else:
                news = [self._news("reasoning_text.done", content_index=0, text=part["text"])]
            news.append(self._news("content_part.done", content_index=0, part=part))
        return [*news, self._news("output_item.done", item=_copy(item))]

    def _break(self) -> list[Fields]:
        """A call that is none after all; what was streamed of it cannot be taken back."""
        if self._streams:
            return self._close("incomplete")
        self.items.pop()
        self._open = False
        return []

    def _news(self, kind: str, **fields: Any) -> Fields:
        if "item" not in fields:
            fields["item_id"] = self.items[-1]["id"]
        return {"type": f"response.{kind}", "output_index": len(self.items) - 1, **fields}


def _copy(item: Fields) -> Fields:
    """As it is now."""
    return {key: list(value) if isinstance(value, list) else value for key, value in item.items()}
