"""The forms of thoughts and calls as formats of xgrammar's structural tags: a grammar of them holds a model
to what the parsers read, in the way in which its family writes it.

``Offers`` are the JSON schemas of the arguments of each function, by its name. ``one`` allows one call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sheaf_runtime.parsers.reasoning import Marks

Shape = dict[str, Any]
Offers = Mapping[str, Any]
Calls = Callable[[Offers, bool], Shape]
# Between the thoughts and the answer, as chat templates write it.
_BLANKS: Shape = {"type": "regex", "pattern": "[ \\n]{0,2}"}


def row(*parts: Shape | str) -> Shape:
    """One behind the other; a string stands for itself."""
    return {"type": "sequence", "elements": [_shape(part) for part in parts]}


def either(*parts: Shape | str) -> Shape:
    return {"type": "or", "elements": [_shape(part) for part in parts]}


def any_number(part: Shape) -> Shape:
    return {"type": "star", "content": part}


def arguments(schema: Any) -> Shape:
    return {"type": "json_schema", "json_schema": schema}


def _shape(part: Shape | str) -> Shape:
    return {"type": "const_string", "value": part} if isinstance(part, str) else part


def thoughts(marks: Marks, *, opened: bool | None, blanks: bool) -> Shape | None:
    """What comes before the answer, which begins inside the thoughts, behind them, or (None) tells.
    ``blanks`` may stand between both."""
    if opened is False:
        return None
    begins = ("",) if opened or marks.assumed else marks.begins
    tags = [
        {"type": "tag", "begin": begin, "content": {"type": "any_text"}, "end": list(marks.ends)}
        for begin in begins
    ]
    shape = row(either(*tags), *([_BLANKS] if blanks else []))
    return {"type": "optional", "content": shape} if begins == marks.begins else shape


# --- calls -------------------------------------------------------------------------------------------------


def _some(call: Shape, separator: Shape | str, one: bool) -> Shape:
    return call if one else row(call, any_number(row(separator, call)))


def _objects(offers: Offers, key: str) -> Shape:
    return either(*(row(f'{{"name": {_text(n)}, "{key}": ', arguments(s), "}") for n, s in offers.items()))


def _text(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)


def listed(offers: Offers, one: bool, key: str = "arguments") -> Shape:
    """``[{"name": ..., "arguments": ...}, ...]``"""
    return row("[", _some(_objects(offers, key), ", ", one), "]")


def _free(rules: Mapping[str, Shape], *, goes_on: bool) -> Shape:
    """Any text, in which each of these marks is followed by its shape; ``goes_on``: and then by more text."""
    return {"type": "dispatch", "rules": [list(rule) for rule in rules.items()], "loop": goes_on}


def instead(answer: Shape, calls: Shape) -> Shape | None:
    """``answer``, or calls and no words. ``calls`` are a family's; None: without a mark they cannot be told
    from the answer."""
    if calls["type"] != "dispatch":
        return None
    alone = either(*(row(mark, shape) for mark, shape in calls["rules"]))
    return either(answer, row(alone, any_number(row("\n", alone))) if calls["loop"] else alone)


def hermes(offers: Offers, one: bool) -> Shape:
    call = row("\n", _objects(offers, "arguments"), "\n</tool_call>")
    return _free({"<tool_call>": call}, goes_on=not one)


def granite(offers: Offers, one: bool) -> Shape:
    call = row("\n", _objects(offers, "arguments"), "\n</tool_call>")
    many = call if one else _some(call, "\n<tool_call>", one)
    return _free({"<|tool_call|>": listed(offers, one), "<tool_call>": many}, goes_on=False)


def granite_20b(offers: Offers, one: bool) -> Shape:
    call = row(" ", _objects(offers, "arguments"))
    return _free({"<function_call>": _some(call, "\n<function_call>", one)}, goes_on=False)


def phi(offers: Offers, one: bool) -> Shape:
    return _free({"functools": listed(offers, one)}, goes_on=False)


def jamba(offers: Offers, one: bool) -> Shape:
    return _free({"<tool_calls>": row(listed(offers, one), "</tool_calls>")}, goes_on=not one)


def mistral(offers: Offers, one: bool) -> Shape:
    """The list of its older models, or the name and then the arguments of its newer ones."""
    names = either(*(row(either(name, f"{name}[ARGS]"), arguments(s)) for name, s in offers.items()))
    shape = either(row(either(" ", ""), listed(offers, one)), _some(names, "[TOOL_CALLS]", one))
    return _free({"[TOOL_CALLS]": shape}, goes_on=False)


def bare(offers: Offers, one: bool) -> Shape:
    """A text that begins with a bracket is calls; any other is none."""
    text = row({"type": "regex", "pattern": "[ \\t\\r\\n]{0,8}[^\\[\\{ \\t\\r\\n]"}, {"type": "any_text"})
    return either("", _bare_calls(offers, one), text)


def llama(offers: Offers, one: bool) -> Shape:
    """As ``bare``, and calls behind the tag wherever it stands."""
    calls = _bare_calls(offers, one)
    begins = "[ \\t\\r\\n]{0,8}([^<\\[\\{ \\t\\r\\n]|<[^<\\|])"
    tag = {"<|python_tag|>": calls}
    text = row({"type": "regex", "pattern": begins}, _free(tag, goes_on=False))
    return either("", calls, row("<|python_tag|>", calls), text)


def _bare_calls(offers: Offers, one: bool) -> Shape:
    return either(_some(_objects(offers, "parameters"), "; ", one), listed(offers, one, "parameters"))


# --- calls with heads of their own -------------------------------------------------------------------------


def cohere(offers: Offers, one: bool) -> Shape:
    """Each call has a number, which the model counts."""
    number: Shape = {"type": "regex", "pattern": "[0-9]{1,3}"}
    calls = either(
        *(
            row(
                '{"tool_call_id": "', number, f'", "tool_name": {_text(n)}, "parameters": ', arguments(s), "}"
            )
            for n, s in offers.items()
        )
    )
    return _free({"<|START_ACTION|>": row("[", _some(calls, ", ", one), "]<|END_ACTION|>")}, goes_on=False)


def deepseek_v3(offers: Offers, one: bool) -> Shape:
    calls = (
        row(f"function<｜tool▁sep｜>{name}\n```json\n", arguments(s), "\n```<｜tool▁call▁end｜>")
        for name, s in offers.items()
    )
    return _section(
        "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁calls▁end｜>", "\n", calls, one
    )


def deepseek_v31(offers: Offers, one: bool) -> Shape:
    calls = (row(f"{name}<｜tool▁sep｜>", arguments(s), "<｜tool▁call▁end｜>") for name, s in offers.items())
    return _section("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁calls▁end｜>", "", calls, one)


def kimi(offers: Offers, one: bool) -> Shape:
    number: Shape = {"type": "regex", "pattern": "[0-9]{1,3}"}
    begins, ends = "<|tool_call_argument_begin|>", "<|tool_call_end|>"
    calls = (row(f"functions.{n}:", number, begins, arguments(s), ends) for n, s in offers.items())
    section = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_calls_section_end|>")
    return _section(*section, "", calls, one)


def _section(begins: str, call: str, ends: str, between: str, calls: Iterable[Shape], one: bool) -> Shape:
    """Calls in a section; one that stands without it is held too. With either, the answer ends."""
    each = either(*calls)
    many = each if one else _some(each, between + call, one)
    return _free({begins: row(call, many, ends), call: many}, goes_on=False)


# --- calls whose arguments are no JSON ---------------------------------------------------------------------


def _written(form: str, offers: Offers) -> Shape:
    """Name and arguments of a call, as ``grammar.written`` has that form."""
    return either(
        *(
            {"type": "json_schema", "style": form, "function": name, "json_schema": schema}
            for name, schema in offers.items()
        )
    )


def qwen3_coder(offers: Offers, one: bool) -> Shape:
    """Its parser also reads a call that lacks the outer tags."""
    call = _written("qwen3_coder", offers)
    rules = {"<tool_call>": row("\n<function=", call, "\n</tool_call>"), "<function=": call}
    return _free(rules, goes_on=not one)


def glm(offers: Offers, one: bool) -> Shape:
    return _free({"<tool_call>": row(_written("glm45", offers), "</tool_call>")}, goes_on=not one)


def olmo3(offers: Offers, one: bool) -> Shape:
    calls = _some(_written("python", offers), "\n", one)
    return _free({"<function_calls>": row("\n", calls, "\n</function_calls>")}, goes_on=False)


def pythonic(offers: Offers, one: bool) -> Shape:
    """As ``bare``."""
    text = row({"type": "regex", "pattern": "[ \\t\\r\\n]{0,8}[^\\[ \\t\\r\\n]"}, {"type": "any_text"})
    return either("", _python_list(offers, one), text)


def llama_pythonic(offers: Offers, one: bool) -> Shape:
    """As ``llama``, between marks."""
    calls = _python_list(offers, one)
    begins = "[ \\t\\r\\n]{0,8}([^<\\[\\{ \\t\\r\\n]|<[^<\\|])"
    marked = row(calls, "<|python_end|>")
    text = row({"type": "regex", "pattern": begins}, _free({"<|python_start|>": marked}, goes_on=False))
    return either("", calls, row("<|python_start|>", marked), text)


def _python_list(offers: Offers, one: bool) -> Shape:
    return row("[", _some(_written("python", offers), ", ", one), "]")
