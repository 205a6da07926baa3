"""The items of a response's input as the messages of a chat."""

from __future__ import annotations

from typing import Any

from sheaf_runtime.server.fields import TEXT_PARTS
from sheaf_runtime.server.unsupported import ParameterError

Fields = dict[str, Any]
_KNOWN = "send message, reasoning, function_call and function_call_output"


def messages_of(given: str | list[Fields], instructions: str | None) -> list[Fields]:
    """What the assistant thought, said and called in a row is one message. Raises ``ParameterError``."""
    messages: list[Fields] = [] if instructions is None else [{"role": "system", "content": instructions}]
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    for index, item in enumerate(given):
        _add(messages, item, f"input.{index}")
    if not messages:
        raise ParameterError("input", "there is nothing to answer; send a message")
    return messages


def is_unfinished(given: str | list[Fields]) -> bool:
    """Whether the last item is an assistant's message that was cut off: the answer goes on where it ends, as
    in vLLM. (Of unfinished thoughts no template knows how to go on.)"""
    last = given[-1] if isinstance(given, list) else {}
    unfinished = last.get("status") in ("in_progress", "incomplete")
    return unfinished and (last.get("type") or "message") == "message" and last.get("role") == "assistant"


def _add(messages: list[Fields], item: Fields, param: str) -> None:
    # A reference need not say what it is.
    kind = item.get("type") or ("item_reference" if "id" in item and "role" not in item else "message")
    if kind == "message":
        role, content = _text(item, "role", param), _texts(item.get("content"), f"{param}.content")
        if role != "assistant":
            if content is None:
                raise ParameterError(f"{param}.content", "must be a string or a list of text parts")
            messages.append({"role": role, "content": content})
            return
        turn = _assistant(messages)
        if turn.keys() & {"content", "tool_calls"}:  # a turn of its own
            messages.append(turn := {"role": "assistant"})
        turn["content"] = content
    elif kind == "reasoning":
        if thoughts := _thoughts(item, param):
            turn = _assistant(messages)
            if len(turn) > 1:
                messages.append(turn := {"role": "assistant"})
            turn["reasoning"] = thoughts
    elif kind == "function_call":
        function = {name: _text(item, name, param) for name in ("name", "arguments")}
        call = {"id": _text(item, "call_id", param), "type": "function", "function": function}
        _assistant(messages).setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = item.get("output")
        if not isinstance(output, str | list):
            raise ParameterError(f"{param}.output", "must be a string or a list of text parts")
        output = _texts(output, f"{param}.output")
        messages.append({"role": "tool", "tool_call_id": _text(item, "call_id", param), "content": output})
    elif kind == "item_reference":
        raise ParameterError(param, "items are not stored here; send the item itself")
    else:
        raise ParameterError(f"{param}.type", f"items of type {str(kind)[:40]!r} are not supported; {_KNOWN}")


def _assistant(messages: list[Fields]) -> Fields:
    """The assistant's turn that is under way, or a new one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant"})
    return messages[-1]


def _thoughts(item: Fields, param: str) -> str:
    """Themselves, or else the summary of them. Those that are encrypted nobody here can read."""
    for name in ("content", "summary"):
        parts = item.get(name) or []
        wrong = not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts)
        texts = [] if wrong else [part.get("text") for part in parts]
        if wrong or not all(isinstance(text, str) for text in texts):
            raise ParameterError(f"{param}.{name}", "must be a list of parts, each with a text")
        if parts:
            return "\n".join(map(str, texts))
    return ""


def _text(item: Fields, name: str, param: str) -> str:
    text = item.get(name)
    if not isinstance(text, str):
        raise ParameterError(f"{param}.{name}", "must be a string")
    return text


def _texts(content: Any, param: str) -> Any:
    """As it is: a chat takes the same parts. Here the error names the item."""
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if str(kind) not in TEXT_PARTS:
                raise ParameterError(param, f"parts of type {str(kind)[:40]!r} are not supported; send text")
    return content
