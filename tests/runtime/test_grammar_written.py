"""Calls whose arguments are no JSON: whatever the grammar lets a model write, the parser reads as one call
whose arguments fit the schema; a keyword that the form cannot hold is refused by name."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from grammar_walk import compiled, fits, wander
from parsed import parse
from sheaf_runtime.grammar.errors import GrammarError
from sheaf_runtime.parsers import TOOLS

FORMS = {  # what stands around a call, and the form's name
    "qwen3_coder": ("<tool_call>\n<function=", "\n</tool_call>", "qwen3_coder"),
    "glm45": ("<tool_call>", "</tool_call>", "glm45"),
    "pythonic": ("[", "]", "python"),
    "llama4_pythonic": ("<|python_start|>[", "]<|python_end|>", "python"),
    "olmo3": ("<function_calls>\n", "\n</function_calls>", "python"),
}
SIDE = {"Side": {"enum": ["left", "right"]}}


def of(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*required]}


SCHEMAS: dict[str, dict[str, Any]] = {
    "nothing": of(),  # vllm#50989: a loop without end
    "text": of("s", s={"type": "string"}),
    "optional": of(a={"type": "integer"}, b={"type": "string"}, c={"type": "boolean"}),
    "nullable": of("s", s={"anyOf": [{"type": "string"}, {"type": "null"}]}),
    "mixed": of("s", s={"type": ["string", "integer", "boolean"]}),
    "bounds": of("n", "x", n={"type": "integer", "minimum": 1, "maximum": 40}, x={"type": "number"}),
    "enum": of("e", e={"enum": ["up", "down", "a b", 3, None]}),
    "numeric words": of("e", e={"type": "string", "enum": ["1", "true", "null"]}),  # they stay strings
    "length": of("s", s={"type": "string", "minLength": 2, "maxLength": 5}),
    "pattern": of("s", s={"type": "string", "pattern": "^[a-z]+-.?[^x]$"}),
    "date": of("d", d={"type": "string", "format": "date"}),
    "list": of("l", l={"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2}),
    "object": of(
        "o", o={**of("p", p={"type": "string"}, q={"enum": ["a", 1.5]}), "additionalProperties": False}
    ),
    "reference": {
        **of("r", "t", r={"$ref": "#/$defs/Side"}, t={"anyOf": [{"$ref": "#/$defs/Side"}, {"type": "null"}]})
    }
    | {"$defs": SIDE},
    "integer reference": {
        **of("r", r={"$ref": "#/$defs/N"}),
        "$defs": {"N": {"type": "integer", "minimum": 3}},
    },
}
PIECES = [
    "<",
    "</",
    "</parameter>",
    "</function>",
    "<parameter=s>",
    "</arg_value>",
    "\n",
    '"',
    "null",
    "5",
    "a",
]
PIECES += ["\n</parameter>\n</function>\n</tool_call>", "</tool_call>", "])", "'", "\\", "true", '"a"', "1e9"]


def grammar_of(form: str, schema: Any) -> Any:
    written = {"type": "json_schema", "style": FORMS[form][2], "function": "f", "json_schema": schema}
    return compiled("structural_tag", json.dumps({"type": "structural_tag", "format": written}))


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("form", FORMS)
def test_arguments_fit(form: str, schema: str) -> None:
    begin, end, _ = FORMS[form]
    grammar, rng, found = grammar_of(form, SCHEMAS[schema]), random.Random(form + schema), 0
    for _ in range(40):
        text = wander(grammar, rng, PIECES)
        if text is None:
            continue
        parsed = parse(lambda: TOOLS[form].make({"f": SCHEMAS[schema]}), begin + text + end)
        assert len(parsed) == 1, text
        name, arguments = parsed[0]
        assert name == "f", text
        jsonschema.validate(json.loads(arguments), SCHEMAS[schema])
        found += 1
    assert found > 3


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3_coder", of(s={"type": "string", "pattern": "[ -~]+"}), "pattern"),
    ("glm45", of(s={"enum": ["<b>", "c"]}), "enum"),
    ("qwen3_coder", of(s={"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 3}]}), "beside"),
    ("glm45", {**of(a={}), "minProperties": 1}, "minProperties"),
    ("qwen3_coder", {"type": "object", "additionalProperties": {"type": "string"}}, "additionalProperties"),
    ("qwen3_coder", of(**{"a b": {"type": "string"}}), "a b"),
    ("pythonic", of(**{"from": {"type": "string"}}), "from"),
    ("pythonic", of(s={"not": {}}), "not"),
]


@pytest.mark.parametrize(("form", "schema", "named"), REFUSED)
def test_what_a_form_cannot_hold_is_named(form: str, schema: dict[str, Any], named: str) -> None:
    with pytest.raises(GrammarError, match=named):
        grammar_of(form, schema)


def test_values_are_written_as_the_templates_write_them() -> None:
    schema = of("path", path={"type": "string"}, n={"type": "integer"})
    qwen, glm = grammar_of("qwen3_coder", schema), grammar_of("glm45", schema)
    assert fits(qwen, "f>\n<parameter=path>\na\n\n<b>\n</parameter>\n</function>")
    assert not fits(qwen, "f>\n<parameter=n>\n5\n</parameter>\n</function>")
    assert fits(glm, "f\n<arg_key>path</arg_key>\n<arg_value>a\n<b></arg_value>\n")
    assert fits(glm, "f<arg_key>path</arg_key><arg_value>a</arg_value>")  # GLM 4.7
    assert fits(grammar_of("pythonic", schema), 'f(path="a\\n", n=5)')
