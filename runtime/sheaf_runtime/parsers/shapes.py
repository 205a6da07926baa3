"""The forms of thoughts and calls as formats of xgrammar's structural tags: a grammar of them holds a model
to what the parsers read, in the way in which its family writes it.

``Offers`` are the JSON schemas of the arguments of each function, by its name. ``one`` allows one call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sheaf_runtime.parsers.reasoning import Marks

Shape = dict[str, Any]
Offers = Mapping[str, Any]
# Between the thoughts and the answer, as chat templates write it.
_BLANKS: Shape = {"type": "regex", "pattern": "[ \\n]{0,2}"}
_LINE: Shape = {"type": "regex", "pattern": "\\n{0,1}"}
# The first of its elements in which the schemas can be held, as ``grammar.recipe`` tells.
FIRST_HELD = "first_held"
_NO_BRACKET_NO_MARK = "([^<\\[\\{ \\t\\r\\n]|<[^<\\|])"
_PLAIN_NAME = re.compile(r"[\w.:/-]+")


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


@dataclass(frozen=True)
class Form:
    """How the calls of an answer are written: what follows each mark, and calls that need no mark because the
    answer begins with them. ``goes_on``: more may follow those behind a mark. ``words`` is what an answer in
    words begins with where ``bare`` calls are told from it by their first character."""

    marked: Mapping[str, Shape] = field(default_factory=dict)
    goes_on: bool = False
    bare: Shape | None = None
    words: str = ""

    def among_words(self) -> Shape:
        """Any answer, in which calls are held."""
        if self.bare is None:
            return self._dispatch()
        free: Shape = self._dispatch() if self.marked else {"type": "any_text"}
        text = row({"type": "regex", "pattern": f"[ \\t\\r\\n]{{0,8}}{self.words}"}, free)
        return either("", self.bare, *self._behind_marks(), text)

    def alone(self) -> Shape:
        """Calls and no words."""
        one = either(*([] if self.bare is None else [self.bare]), *self._behind_marks())
        return row(one, any_number(row(_LINE, one))) if self.goes_on else one

    def instead_of(self, answer: Shape) -> Shape | None:
        """``answer``, or calls and no words. None: without a mark they cannot be told from the answer."""
        return either(answer, self.alone()) if self.bare is None else None

    def _behind_marks(self) -> list[Shape]:
        return [row(mark, shape) for mark, shape in self.marked.items()]

    def _dispatch(self) -> Shape:
        rules = [list(rule) for rule in self.marked.items()]
        return {"type": "dispatch", "rules": rules, "loop": self.goes_on}


Calls = Callable[[Offers, bool], Form]


def demanded(calls: Calls, offers: Offers, one: bool) -> Shape:
    """Calls and no words, in the family's form; as a JSON list where that cannot hold a schema or a name."""
    json_list = listed(offers, one, "parameters")
    if not all(map(_PLAIN_NAME.fullmatch, offers)):
        return json_list
    return {"type": FIRST_HELD, "elements": [calls(offers, one).alone(), json_list]}


def hermes(offers: Offers, one: bool) -> Form:
    call = row("\n", _objects(offers, "arguments"), "\n</tool_call>")
    return Form({"<tool_call>": call}, goes_on=not one)


def granite(offers: Offers, one: bool) -> Form:
    call = row("\n", _objects(offers, "arguments"), "\n</tool_call>")
    many = call if one else _some(call, "\n<tool_call>", one)
    return Form({"<|tool_call|>": listed(offers, one), "<tool_call>": many})


def granite_20b(offers: Offers, one: bool) -> Form:
    call = row(" ", _objects(offers, "arguments"))
    return Form({"<function_call>": _some(call, "\n<function_call>", one)})


def phi(offers: Offers, one: bool) -> Form:
    return Form({"functools": listed(offers, one)})


def jamba(offers: Offers, one: bool) -> Form:
    return Form({"<tool_calls>": row(listed(offers, one), "</tool_calls>")}, goes_on=not one)


def mistral(offers: Offers, one: bool) -> Form:
    """The list of its older models, or the name and then the arguments of its newer ones."""
    names = either(*(row(either(name, f"{name}[ARGS]"), arguments(s)) for name, s in offers.items()))
    shape = either(row(either(" ", ""), listed(offers, one)), _some(names, "[TOOL_CALLS]", one))
    return Form({"[TOOL_CALLS]": shape})


def bare(offers: Offers, one: bool) -> Form:
    """A text that begins with a bracket is calls; any other is none."""
    return Form(bare=_bare_calls(offers, one), words="[^\\[\\{ \\t\\r\\n]")


def llama(offers: Offers, one: bool) -> Form:
    """As ``bare``, and calls behind the tag wherever it stands."""
    calls = _bare_calls(offers, one)
    return Form({"<|python_tag|>": calls}, bare=calls, words=_NO_BRACKET_NO_MARK)


def _bare_calls(offers: Offers, one: bool) -> Shape:
    return either(_some(_objects(offers, "parameters"), "; ", one), listed(offers, one, "parameters"))


# --- calls with heads of their own -------------------------------------------------------------------------


def cohere(offers: Offers, one: bool) -> Form:
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
    return Form({"<|START_ACTION|>": row("[", _some(calls, ", ", one), "]<|END_ACTION|>")})


def deepseek_v3(offers: Offers, one: bool) -> Form:
    calls = (
        row(f"function<｜tool▁sep｜>{name}\n```json\n", arguments(s), "\n```<｜tool▁call▁end｜>")
        for name, s in offers.items()
    )
    return _section(
        "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁calls▁end｜>", "\n", calls, one
    )


def deepseek_v31(offers: Offers, one: bool) -> Form:
    calls = (row(f"{name}<｜tool▁sep｜>", arguments(s), "<｜tool▁call▁end｜>") for name, s in offers.items())
    return _section("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁calls▁end｜>", "", calls, one)


def kimi(offers: Offers, one: bool) -> Form:
    number: Shape = {"type": "regex", "pattern": "[0-9]{1,3}"}
    begins, ends = "<|tool_call_argument_begin|>", "<|tool_call_end|>"
    calls = (row(f"functions.{n}:", number, begins, arguments(s), ends) for n, s in offers.items())
    section = ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_calls_section_end|>")
    return _section(*section, "", calls, one)


def _section(begins: str, call: str, ends: str, between: str, calls: Iterable[Shape], one: bool) -> Form:
    """Calls in a section; one that stands without it is held too. With either, the answer ends."""
    each = either(*calls)
    many = each if one else _some(each, between + call, one)
    return Form({begins: row(call, many, ends), call: many})


# --- calls whose arguments are no JSON ---------------------------------------------------------------------


def _written(form: str, offers: Offers) -> Shape:
    """Name and arguments of a call, as ``grammar.written`` has that form."""
    return either(
        *(
            {"type": "json_schema", "style": form, "function": name, "json_schema": schema}
            for name, schema in offers.items()
        )
    )


def qwen3_coder(offers: Offers, one: bool) -> Form:
    """Its parser also reads a call that lacks the outer tags."""
    call = _written("qwen3_coder", offers)
    rules = {"<tool_call>": row("\n<function=", call, "\n</tool_call>"), "<function=": call}
    return Form(rules, goes_on=not one)


def glm(offers: Offers, one: bool) -> Form:
    return Form({"<tool_call>": row(_written("glm45", offers), "</tool_call>")}, goes_on=not one)


def olmo3(offers: Offers, one: bool) -> Form:
    calls = _some(_written("python", offers), "\n", one)
    return Form({"<function_calls>": row("\n", calls, "\n</function_calls>")})


def pythonic(offers: Offers, one: bool) -> Form:
    """As ``bare``."""
    return Form(bare=_python_list(offers, one), words="[^\\[ \\t\\r\\n]")


def llama_pythonic(offers: Offers, one: bool) -> Form:
    """As ``llama``, between marks."""
    calls = _python_list(offers, one)
    return Form({"<|python_start|>": row(calls, "<|python_end|>")}, bare=calls, words=_NO_BRACKET_NO_MARK)


def _python_list(offers: Offers, one: bool) -> Shape:
    return row("[", _some(_written("python", offers), ", ", one), "]")
