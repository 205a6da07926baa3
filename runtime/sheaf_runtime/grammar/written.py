"""Arguments of a call in forms that are no JSON: a tag for each (Qwen3-Coder, GLM), or Python's keywords.

In tags a string is written as it is, so nothing inside may look like a tag: ``<`` comes in no string that is
part of another value, and the tags that would end a value come in none.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable, Iterator
from typing import Any

from sheaf_runtime.grammar.errors import GrammarError
from sheaf_runtime.grammar.schema import hold

Shape = dict[str, Any]
_ANY_NAME: Shape = {"type": "regex", "pattern": "[A-Za-z_][A-Za-z0-9_]{0,63}"}
_LINE: Shape = {"type": "regex", "pattern": "\\n{0,1}"}
_TAGS = {
    "qwen3_coder": ["</parameter>", "</function>", "<parameter="],
    "glm45": ["</arg_value>"],
}
_NAMES = {
    "qwen3_coder": r"[^<>\s]{1,256}",
    "glm45": r"[^\s<>{}\"]{1,256}",
    "python": r"[A-Za-z_][A-Za-z0-9_]{0,255}",
}
FORMS = tuple(_NAMES)
_PIECE = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|.", re.DOTALL)
_RANGE = re.compile(r"(\\.|[^\\])-([^\]])")
_MIXED = "a string beside other types is held in this model's calls where those have no keyword of their own"


def call(form: str, name: str, schema: Any, json_of: Callable[[Any, bool], Shape]) -> Shape:
    """One call, from the function's name to its end. ``json_of`` makes the shape of a JSON value, with or
    without ``<`` in its strings. Raises ``GrammarError``."""
    pattern = r"[A-Za-z_][\w.-]{0,255}" if form == "python" else _NAMES[form]
    if not re.fullmatch(pattern, name):
        raise GrammarError(f"{name!r}: no name of a function in the form of this model's calls")
    held = hold(schema)
    properties, required = _properties(schema, held)
    for key in properties or ():
        if not re.fullmatch(_NAMES[form], key) or (form == "python" and keyword.iskeyword(key)):
            raise GrammarError(
                f"#/properties/{key}: no name of an argument in the form of this model's calls"
            )
    defs = {"$defs": held["$defs"]} if "$defs" in held else {}
    if form == "python":
        values = {k: json_of({**v, **defs}, True) for k, v in (properties or {}).items()}
        return _row(f"{name}(", _keywords(properties is None, values, required, json_of), ")")
    tagged = _Tagged(form, held, json_of)
    parts: list[Shape | str] = []
    if properties is None:
        text = tagged.text({})
        parts.append({"type": "star", "content": tagged.argument(_ANY_NAME, text)})
    for key, value in (properties or {}).items():
        argument = tagged.argument(key, tagged.value({**value, **defs}, f"#/properties/{key}"))
        parts.append(argument if key in required else _optional(argument))
    if form == "glm45":
        return _row(name, _LINE, *parts)
    return _row(f"{name}>\n", *parts, "</function>")


def _properties(schema: Any, held: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """None: any."""
    if held.get("type") != "object":
        raise GrammarError("#: parameters of this model's calls must be an object with 'properties'")
    for key in ("patternProperties", "propertyNames", "minProperties"):
        if key in held:
            raise GrammarError(f"#: the keyword {key!r} is not held in this model's calls; leave it out")
    properties, more = held.get("properties"), held["additionalProperties"]
    if isinstance(more, dict) and more:
        raise GrammarError(
            "#: the keyword 'additionalProperties' with a schema is not held in this model's calls"
        )
    if "maxProperties" in held and (properties is None or held["maxProperties"] < len(properties)):
        raise GrammarError("#: the keyword 'maxProperties' is not held in this model's calls; leave it out")
    if properties is None and more is not False and schema.get("properties") is None:
        return None, []
    return properties or {}, held.get("required", [])


class _Tagged:
    def __init__(self, form: str, held: dict[str, Any], json_of: Callable[[Any, bool], Shape]) -> None:
        self._form, self._json_of = form, json_of
        self._defs = held.get("$defs", {})

    def argument(self, name: Shape | str, value: Shape) -> Shape:
        if self._form == "glm45":
            return _row("<arg_key>", name, "</arg_key>", _LINE, "<arg_value>", value, "</arg_value>", _LINE)
        return _row("<parameter=", name, ">\n", value, "\n</parameter>\n")

    def value(self, held: dict[str, Any], at: str) -> Shape:
        branches = list(self._branches(held, 0))
        texts = [b for b in branches if "enum" not in b and b.get("type", "string") == "string"]
        texts += [b for b in branches if isinstance(b.get("enum", [None])[0], str)]
        others = [b for b in branches if b not in texts]
        bounded = any(b.keys() - {"type"} or b.get("type") in ("object", "array") for b in others)
        if bounded and not all("enum" in b and not any(map(_is_json, b["enum"])) for b in texts):
            raise GrammarError(f"{at}: {_MIXED}")
        options = [self.text(b, at) for b in texts]
        for branch in others:
            check = _without_tags({**branch, "$defs": self._defs} if self._defs else branch, at)
            options.append(self._json_of(check, False))
        return options[0] if len(options) == 1 else {"type": "or", "elements": options}

    def _branches(self, held: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
        """Each of one kind: references are followed, choices opened."""
        held = {key: value for key, value in held.items() if key != "$defs"}
        if depth > 16:
            raise GrammarError("#: references of an argument go round; describe it without")
        if "$ref" in held:
            yield from self._branches(self._defs[held["$ref"].rpartition("/")[2]], depth + 1)
        elif "anyOf" in held:
            for option in held["anyOf"]:
                yield from self._branches(option, depth + 1)
        elif "enum" in held:
            words = [value for value in held["enum"] if isinstance(value, str)]
            rest = [value for value in held["enum"] if not isinstance(value, str)]
            if words:
                yield {"enum": words}
            if rest == [None]:
                yield {"type": "null"}
            elif rest:
                yield {"enum": rest}
        else:
            yield held

    def text(self, held: dict[str, Any], at: str = "#") -> Shape:
        if "enum" in held:
            for value in held["enum"]:
                if "<" in value or value != value.strip() or value[:1] == '"':
                    raise GrammarError(f"{at}/enum: {value!r} is not held in this model's calls")
            return {"type": "or", "elements": [_row(value) for value in held["enum"]]}
        if "pattern" in held:
            return {"type": "regex", "pattern": _without_tag(held["pattern"], f"{at}/pattern")}
        return {"type": "any_text", "excludes": _TAGS[self._form]}


def _is_json(word: str) -> bool:
    """Whether the parser would read this text as a value of another type."""
    try:
        json.loads(word)
    except ValueError:
        return word.strip() in ("True", "False", "None")
    return True


def _without_tags(held: Any, at: str) -> Any:
    """The schema of a JSON value whose strings have no ``<``."""
    if isinstance(held, list):
        return [_without_tags(item, at) for item in held]
    if not isinstance(held, dict):
        return held
    result = {}
    for key, value in held.items():
        if key == "pattern" and isinstance(value, str):
            result[key] = _without_tag(value, f"{at}/pattern")
        elif key == "enum" and "<" in str(value):
            raise GrammarError(f"{at}/enum: '<' is not held in this model's calls")
        elif key == "properties" and any("<" in name for name in value):
            raise GrammarError(f"{at}/properties: '<' in a name is not held in this model's calls")
        elif key == "patternProperties":
            raise GrammarError(f"{at}: the keyword 'patternProperties' is not held in this model's calls")
        else:
            result[key] = value if key == "enum" else _without_tags(value, at)
    return result


def _without_tag(pattern: str, at: str) -> str:
    """The pattern for texts without ``<``."""
    pieces = []
    for piece in _PIECE.findall(pattern):
        if piece == ".":
            piece = r"[^<\n]"
        elif piece.startswith("[^") and len(piece) > 2:
            piece = f"[^<{piece[2:]}"
        elif piece[0] == "[" and len(piece) > 1:
            spans = ((m[1][-1], m[2]) for m in _RANGE.finditer(piece[1:-1]))
            wide = re.search(r"\\[SWDxu]", piece) or any(a <= "<" <= b for a, b in spans)
            piece = "<" if wide or "<" in piece else piece
        if ("<" in piece and not piece.startswith("[^<")) or piece in (r"\S", r"\W", r"\D", r"\x", r"\u"):
            raise GrammarError(f"{at}: may write '<', which is not held in this model's calls")
        pieces.append(piece)
    return "".join(pieces)


def _keywords(
    free: bool, values: dict[str, Shape], required: list[str], json_of: Callable[[Any, bool], Shape]
) -> Shape | str:
    if free:
        more = _row(_ANY_NAME, "=", json_of({}, True))
        return _optional(_row(more, {"type": "star", "content": _row(", ", more)}))
    first = [_row(f"{key}=", values[key]) for key in values if key in required]
    rest = [_row(f"{key}=", values[key]) for key in values if key not in required]
    behind = [_optional(_row(", ", argument)) for argument in rest]
    if first:
        return _row(first[0], *(_row(", ", argument) for argument in first[1:]), *behind)
    if not rest:
        return ""
    begins = [_row(argument, *behind[i + 1 :]) for i, argument in enumerate(rest)]
    return _optional({"type": "or", "elements": begins})


def _row(*parts: Shape | str) -> Shape:
    elements = [
        {"type": "const_string", "value": part} if isinstance(part, str) else part for part in parts if part
    ]
    return {"type": "sequence", "elements": elements or [{"type": "const_string", "value": ""}]}


def _optional(part: Shape) -> Shape:
    return {"type": "optional", "content": part}
