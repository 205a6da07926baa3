"""A JSON schema as xgrammar holds it truly, or the keyword that it would not hold.

xgrammar passes over what it does not know, and over most keywords beside ``anyOf``, ``enum`` or ``$ref``.
What comes out has to be valid, so a schema is first written in the part of the language that is held. Where
that allows less than the schema does (a regular expression describes the whole string, an object with
``properties`` has no others unless it says so), every answer is still valid.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from sheaf_runtime.grammar.errors import GrammarError
from sheaf_runtime.grammar.keywords import ANNOTATIONS, HELD, REFUSED, WHOLE
from sheaf_runtime.grammar.pattern import check_pattern
from sheaf_runtime.grammar.scalars import counts, integer, is_a, number, shown, string

MAX_DEPTH = 64
MAX_NODES = 20_000


def hold(schema: Any) -> dict[str, Any]:
    """Raises ``GrammarError`` with the place and the keyword that is not held."""
    return _Holder(schema).root()


class _Holder:
    def __init__(self, schema: Any) -> None:
        self._root = schema
        self._nodes = 0
        self._names: dict[str, str] = {}  # of references, by their text
        self._defs: dict[str, Any] = {}  # what references name, under names of ours

    def root(self) -> dict[str, Any]:
        held = self._schema(self._root, "#", 0)
        return {**held, "$defs": self._defs} if self._defs else held

    def _schema(self, schema: Any, at: str, depth: int) -> dict[str, Any]:
        self._nodes += 1
        if depth > MAX_DEPTH:
            raise GrammarError(f"{at[:200]}: nested deeper than {MAX_DEPTH}; make it flatter")
        if self._nodes > MAX_NODES:
            raise GrammarError(f"the schema has more than {MAX_NODES} parts; make it smaller")
        if schema is True:
            return {}
        if schema is False:
            raise GrammarError(f"{at}: false allows nothing; leave it out")
        if not isinstance(schema, dict):
            raise GrammarError(f"{at}: must be a schema, got {shown(schema)}")
        node = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
        for key in node:
            if key in REFUSED and not (key == "uniqueItems" and node[key] is False):
                raise GrammarError(f"{at}: the keyword {key!r} is not held; leave it out")
        node.pop("uniqueItems", None)
        whole = [key for key in WHOLE if key in node]
        if whole:
            return self._whole(whole[0], node, at, depth)
        return self._typed(node, at, depth)

    # --- keywords that say all by themselves ----------------------------------------------------------

    def _whole(self, key: str, node: dict[str, Any], at: str, depth: int) -> dict[str, Any]:
        value, beside = node[key], node.keys() - {key, "type"}
        if key in ("const", "enum"):
            beside -= {"enum"}
        if beside:
            raise GrammarError(f"{at}: {sorted(beside)[0]!r} beside {key!r} is not held; write them as one")
        types = self._types(node, at)
        if key in ("const", "enum"):
            return self._values(key, node, types, at)
        if types is not None and key != "$ref":
            value = [_with_type(option, types) for option in value] if isinstance(value, list) else value
        elif types is not None:
            raise GrammarError(f"{at}: 'type' beside '$ref' is not held; leave it out")
        if key == "$ref":
            return {"$ref": self._reference(value, at, depth)}
        if not isinstance(value, list) or not value:
            raise GrammarError(f"{at}/{key}: must be a list of schemas that is not empty")
        options = [self._schema(option, f"{at}/{key}/{i}", depth + 1) for i, option in enumerate(value)]
        if key == "allOf" and len(options) > 1:
            raise GrammarError(f"{at}: 'allOf' with several schemas is not held; write them as one")
        if key == "oneOf":
            options = self._apart(options, at)
        return options[0] if len(options) == 1 else {"anyOf": options}

    def _values(
        self, key: str, node: dict[str, Any], types: tuple[str, ...] | None, at: str
    ) -> dict[str, Any]:
        values = [node["const"]] if key == "const" else node["enum"]
        if not isinstance(values, list):
            raise GrammarError(f"{at}/enum: must be a list")
        kept = [v for v in values if types is None or any(is_a(v, kind) for kind in types)]
        if key == "const" and "enum" in node:
            kept = [v for v in kept if any(_same(v, other) for other in node["enum"])]
        if not kept:
            raise GrammarError(f"{at}/{key}: no value is left that fits; at least one must")
        return {"enum": kept}

    def _reference(self, uri: Any, at: str, depth: int) -> str:
        if not isinstance(uri, str) or not (uri == "#" or uri.startswith("#/")):
            raise GrammarError(f"{at}/$ref: {shown(uri)} is not within the schema; only '#/...' is followed")
        name = self._names.setdefault(uri, f"d{len(self._names)}")
        if name not in self._defs:
            self._defs[name] = {}  # it may refer to itself
            target = self._root
            for part in uri.split("/")[1:]:
                part = unquote(part).replace("~1", "/").replace("~0", "~")
                if isinstance(target, list) and part.isdecimal() and int(part) < len(target):
                    target = target[int(part)]
                elif isinstance(target, dict) and part in target:
                    target = target[part]
                else:
                    raise GrammarError(f"{at}/$ref: {uri!r} names nothing in the schema")
            self._defs[name] = self._schema(target, uri, depth + 1)
        return f"#/$defs/{name}"

    def _apart(self, options: list[dict[str, Any]], at: str) -> list[dict[str, Any]]:
        """``oneOf`` whose branches no value fits two of is an ``anyOf``."""
        options = [dict(self._followed(option)) for option in options]
        for i, one in enumerate(options):
            for other in options[i + 1 :]:
                if not self._disjoint(one, other):
                    raise GrammarError(f"{at}: branches of 'oneOf' may overlap; write 'anyOf'")
        return options

    def _disjoint(self, one: dict[str, Any], other: dict[str, Any]) -> bool:
        """Also asks both for the property that tells them apart, if it was optional."""
        one_values, other_values = one.get("enum"), other.get("enum")
        if one_values is not None and other_values is not None:
            return not any(_same(a, b) for a in one_values for b in other_values)
        kinds = [_kinds(one), _kinds(other)]
        if None not in kinds and not kinds[0] & kinds[1]:  # type: ignore[operator]
            return True
        mine, theirs = one.get("properties", {}), other.get("properties", {})
        for name in mine.keys() & theirs.keys():
            a, b = self._followed(mine[name]), self._followed(theirs[name])
            if "enum" in a and "enum" in b and self._disjoint(a, b):
                for side in (one, other):
                    side["required"] = list(dict.fromkeys([*side.get("required", ()), name]))
                return True
        return False

    def _followed(self, held: dict[str, Any]) -> dict[str, Any]:
        for _ in range(8):
            if "$ref" not in held:
                break
            held = self._defs[held["$ref"].rpartition("/")[2]]
        return held

    # --- keywords about values of a type --------------------------------------------------------------

    def _types(self, node: dict[str, Any], at: str) -> tuple[str, ...] | None:
        given = node.get("type")
        if given is None:
            return None
        kinds = (given,) if isinstance(given, str) else given
        if not isinstance(kinds, list | tuple) or not kinds or not all(k in HELD for k in kinds):
            raise GrammarError(f"{at}/type: must be one of {', '.join(HELD)} or a list of them")
        return tuple(kinds)

    def _typed(self, node: dict[str, Any], at: str, depth: int) -> dict[str, Any]:
        keys = node.keys() - {"type"}
        known = frozenset().union(*HELD.values())
        if unknown := sorted(keys - known):
            raise GrammarError(f"{at}: the keyword {unknown[0]!r} is not known; leave it out")
        types = self._types(node, at)
        if types is None:  # the keywords are about values of their types, and those are what comes out
            types = tuple(kind for kind in ("object", "array", "string", "number") if keys & HELD[kind])
            if "multipleOf" in keys:
                types = ("integer",)
        options = [self._of_type(kind, node, at, depth) for kind in types]
        if not options:
            return {}
        return options[0] if len(options) == 1 else {"anyOf": options}

    def _of_type(self, kind: str, node: dict[str, Any], at: str, depth: int) -> dict[str, Any]:
        own = {key: value for key, value in node.items() if key in HELD[kind]}
        if kind == "number" and "multipleOf" in node:
            raise GrammarError(f"{at}: 'multipleOf' of a number is not held; use an integer")
        if kind in ("object", "array"):
            make = self._object if kind == "object" else self._array
            return {"type": kind, **make(own, at, depth)}
        judge = {"string": string, "integer": integer, "number": number}.get(kind)
        return {"type": kind} if judge is None else {"type": kind, **judge(own, at)}

    def _object(self, own: dict[str, Any], at: str, depth: int) -> dict[str, Any]:
        properties = _mapping(own.get("properties", {}), f"{at}/properties")
        required = own.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise GrammarError(f"{at}/required: must be a list of names")
        more = own.get("additionalProperties", True)
        held: dict[str, Any] = {
            name: self._schema(value, f"{at}/properties/{name}", depth + 1)
            for name, value in properties.items()
        }
        patterns = _mapping(own.get("patternProperties", {}), f"{at}/patternProperties")
        for name in required:
            if name not in held:
                if patterns or more is False:
                    raise GrammarError(
                        f"{at}/required: {name!r} is not among the properties; describe it there"
                    )
                held[name] = self._schema(more, f"{at}/additionalProperties", depth + 1)
        low, high = counts(own, "Properties", at)
        result: dict[str, Any] = {}
        if patterns:
            if held or len(patterns) > 1 or "propertyNames" in own:
                raise GrammarError(
                    f"{at}: 'patternProperties' is held for one pattern and without 'properties'"
                )
            ((pattern, value),) = patterns.items()
            place = f"{at}/patternProperties/{pattern}"
            result["patternProperties"] = {
                check_pattern(pattern, place): self._schema(value, place, depth + 1)
            }
            more = False
        elif "propertyNames" in own:
            if held or more is not True:
                raise GrammarError(f"{at}: 'propertyNames' beside other keywords of objects is not held")
            names = self._schema({"type": "string", **_mapping(own["propertyNames"], at)}, at, depth + 1)
            if names.get("type") != "string":
                raise GrammarError(f"{at}/propertyNames: only 'pattern', 'format' and lengths are held")
            result["propertyNames"] = names
            more = False
        elif held:
            result["properties"] = held
            result["required"] = list(dict.fromkeys(required))
            if "additionalProperties" not in own:
                more = False
        low = 0 if low <= len(required) else low
        if low > 1 and (more is not False or not held):
            raise GrammarError(f"{at}: 'minProperties' is held for named properties alone")
        if "propertyNames" not in result:
            result["additionalProperties"] = (
                more
                if isinstance(more, bool)
                else self._schema(more, f"{at}/additionalProperties", depth + 1)
            )
        if low:
            result["minProperties"] = low
        if high is not None:
            result["maxProperties"] = high
        return result

    def _array(self, own: dict[str, Any], at: str, depth: int) -> dict[str, Any]:
        low, high = counts(own, "Items", at)
        first = own.get("prefixItems", [])
        if not isinstance(first, list):
            raise GrammarError(f"{at}/prefixItems: must be a list of schemas")
        result: dict[str, Any] = {}
        if first:
            result["prefixItems"] = [
                self._schema(item, f"{at}/prefixItems/{i}", depth + 1) for i, item in enumerate(first)
            ]
        items = own.get("items", True)
        if isinstance(items, list):
            raise GrammarError(f"{at}/items: a list is not held; write 'prefixItems'")
        if high is not None and high <= len(first):
            result["prefixItems"] = result.get("prefixItems", [])[:high]
            items = False
        result["items"] = False if items is False else self._schema(items, f"{at}/items", depth + 1)
        if low:
            result["minItems"] = low
        if high is not None:
            result["maxItems"] = high
        return result


def schemas_of(tag: Any) -> Iterator[dict[str, Any]]:
    """The formats of a structural tag that are JSON schemas."""
    if isinstance(tag, list):
        for item in tag:
            yield from schemas_of(item)
    elif isinstance(tag, dict):
        if tag.get("type") == "json_schema":
            yield tag
        else:
            for item in tag.values():
                yield from schemas_of(item)


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True) or (
        is_a(one, "number") and is_a(other, "number") and one == other
    )


def _kinds(held: dict[str, Any]) -> set[str] | None:
    if "type" not in held:
        return None
    return {"number"} if held["type"] == "integer" else {held["type"]}


def _with_type(option: Any, types: tuple[str, ...]) -> Any:
    """A branch that says nothing of its type has that of the whole."""
    if isinstance(option, dict) and "$ref" not in option and not any(key in option for key in WHOLE):
        if "type" not in option:
            return {**option, "type": list(types)}
        mine = option["type"] if isinstance(option["type"], list) else [option["type"]]
        return {**option, "type": [kind for kind in mine if kind in types or kind == "integer"]}
    raise GrammarError("'type' beside 'anyOf' is held for branches that are plain; leave it out")


def _mapping(value: Any, at: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise GrammarError(f"{at}: must be an object")
    return value
