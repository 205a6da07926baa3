"""From a request's grammar to what xgrammar compiles: one of its calls, and one text for it."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import msgspec

from sheaf_runtime.grammar.errors import GrammarError
from sheaf_runtime.grammar.native import bindings
from sheaf_runtime.grammar.pattern import check_regex
from sheaf_runtime.grammar.schema import hold, schemas_of
from sheaf_runtime.grammar.written import FORMS, call
from sheaf_runtime.parsers.shapes import FIRST_HELD
from sheaf_runtime.protocol.grammar import Grammar

# Blanks between two parts of JSON: enough for a line break and its indent. Without an end to them a model
# that does not know what to say writes blanks until its tokens are used up.
MOST_BLANKS = 32
# Characters are written, not escaped: an escape could spell a property's name a second way, or half a
# character.
_ESCAPES = re.compile(r"^basic_escape ::= .*$", re.MULTILINE)
_NO_TAGS = (r"[^\0-\x1f\"\\\r\n]", r"[^\0-\x1f\"\\\r\n<]")  # the characters of strings
# Python's numbers have an end.
_EXPONENT = re.compile(r"(\[eE\] \S+ \S+)\{1, -1\}")
_SAFE_ESCAPES = r'basic_escape ::= (([\"\\bfnrt]) | ("u00" [01] [0-9A-Fa-f]))'


class Recipe(msgspec.Struct, frozen=True):
    """``text`` is xgrammar's EBNF, or a structural tag."""

    text: str
    is_tag: bool = False

    def compile(self, compiler: Any) -> Any:
        """xgrammar's compiled grammar. Raises ``RuntimeError``."""
        if self.is_tag:
            return compiler.compile_structural_tag(self.text)
        return compiler.compile_grammar_from_strings(self.text, "root")


def recipe_of(grammar: Grammar) -> Recipe:
    """Raises ``GrammarError`` for what cannot be held."""
    if grammar.kind == "structural_tag":
        tag = _held_tag(json.loads(grammar.text))
        if grammar.before:
            if "format" not in tag:
                raise GrammarError("a structural tag needs its 'format' behind thoughts")
            tag["format"] = _behind(grammar.before, tag["format"])
        return Recipe(json.dumps(tag, ensure_ascii=False), is_tag=True)
    ebnf = _ebnf(grammar.kind, grammar.text)
    if not grammar.before:
        return Recipe(ebnf)
    format_ = _behind(grammar.before, {"type": "grammar", "grammar": ebnf})
    return Recipe(json.dumps({"type": "structural_tag", "format": format_}, ensure_ascii=False), is_tag=True)


def _behind(before: str, format_: Any) -> Any:
    return {"type": "sequence", "elements": [json.loads(before), format_]}


def _ebnf(kind: str, text: str) -> str:
    if kind == "json_object":
        return _json({"type": "object"})
    if kind == "json_schema":
        return _json(json.loads(text))
    if kind == "regex":
        return _text_of("from_regex", check_regex(text, "regex"), False)
    if kind == "choice":
        choices = dict.fromkeys(json.loads(text))
        return f"root ::= {' | '.join(map(_literal, choices))}"
    return _text_of("from_ebnf", text, "root")


def _held_tag(tag: Any) -> Any:
    """Every schema in it becomes the grammar that holds it, in place."""
    format_ = tag.get("format") if isinstance(tag, dict) else None
    if isinstance(format_, dict) and format_.get("type") == FIRST_HELD:
        return {**tag, "format": _first_held(format_["elements"])}
    for schema in schemas_of(tag):
        style = schema.get("style", "json")
        if style == "json":
            ebnf = _json(schema.get("json_schema"))
            schema.clear()
            schema.update({"type": "grammar", "grammar": ebnf})
        elif style in FORMS:
            written = call(style, schema.get("function", ""), schema.get("json_schema"), _value)
            schema.clear()
            schema.update(written)
        else:
            schema["json_schema"] = hold(schema.get("json_schema"))
    return tag


def _first_held(formats: list[Any]) -> Any:
    """Raises what is wrong with the last."""
    for format_ in formats[:-1]:
        with contextlib.suppress(GrammarError):
            return _held_tag(format_)
    return _held_tag(formats[-1])


def _json(schema: Any) -> str:
    held = json.dumps(hold(schema), ensure_ascii=False)
    ebnf = _text_of("from_json_schema", held, True, None, None, False, MOST_BLANKS, False, False)
    return _ESCAPES.sub(lambda _: _SAFE_ESCAPES, ebnf)


def _value(schema: Any, tags: bool) -> dict[str, Any]:
    """A JSON value that is part of a call; without ``tags`` its strings have no ``<``."""
    ebnf = _EXPONENT.sub(r"\1{1, 2}", _json(schema))
    return {"type": "grammar", "grammar": ebnf if tags else ebnf.replace(*_NO_TAGS)}


def _text_of(maker: str, *arguments: Any) -> str:
    try:
        return str(getattr(bindings().Grammar, maker)(*arguments).to_string())
    except Exception as error:  # the library raises several kinds
        raise GrammarError(words(error)) from error


def words(error: Exception) -> str:
    """The library's message without the place in its own source."""
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+: ", "", str(error)).strip()


def _literal(text: str) -> str:
    """A string of EBNF. Every character but the plainest is a code point: nothing can end it."""
    plain = (c if c.isascii() and (c.isalnum() or c in " _-.,:/") else f"\\U{ord(c):08x}" for c in text)
    return f'"{"".join(plain)}"'
