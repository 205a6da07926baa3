"""What JSON schemas and patterns become: everything that fits the grammar fits the schema, by an independent
validator, and what would not be held is refused by name. Inputs are from public reports where they say so."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from grammar_walk import compiled, fits, walk
from sheaf_runtime.grammar.errors import GrammarError
from sheaf_runtime.grammar.keywords import FORMATS, HELD, REFUSED, WHOLE

INT: dict[str, Any] = {"type": "integer"}
NODE = {
    "type": "object",
    "properties": {"c": {"type": "array", "items": {"$ref": "#/$defs/n"}}},
    "required": ["c"],
}
CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "lives": INT}}
DOG = {"type": "object", "properties": {"kind": {"const": "dog"}, "bark": {"type": "boolean"}}}
PAIR = {"type": "object", "properties": {"a": INT, "b": {"type": "string"}}}

# schema, texts that fit, texts that do not
CASES: list[tuple[Any, list[str], list[str]]] = [
    (True, ["1", '{"a": [null]}'], ["", "nul"]),
    ({}, ["1", '{"a": [null]}'], ["x"]),
    ({"type": "null"}, ["null"], ["0"]),
    ({"type": ["string", "null"]}, ['"a"', "null"], ["1"]),
    (INT | {"minimum": 3, "maximum": 12}, ["3", "12"], ["2", "13", "03", "-3"]),
    (INT | {"exclusiveMinimum": 2.5, "exclusiveMaximum": 4}, ["3"], ["2", "4"]),
    (INT | {"minimum": -5}, ["-5", "0", "100"], ["-6"]),
    (INT | {"multipleOf": 7}, ["14", "0"], ["15"]),
    (INT | {"multipleOf": 7, "minimum": 0, "maximum": 30}, ["14", "28"], ["15", "35"]),
    ({"type": "number", "minimum": 0.5, "maximum": 1000}, ["0.5", "1000"], ["0.4", "1000.1"]),
    ({"minimum": 3}, ["4"], ["2", '"x"']),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"', '"éé"'], ['"a"', '"abcd"', '"\t\t"']),
    ({"type": "string", "pattern": "^a.b$"}, ['"axb"'], ['"ab"', '"a"b"']),
    ({"type": "string", "pattern": "[一-龥]+"}, ['"在线"'], ['"a"']),
    ({"type": "array"}, ["[]", '[1, "a"]'], ["{}"]),
    (
        {"type": "array", "items": INT, "minItems": 2, "maxItems": 3},
        ["[1,2]"],
        ["[1]", "[1,2,3,4]", '["a","b"]'],
    ),
    ({"type": "array", "prefixItems": [INT, {"type": "string"}]}, ['[1,"a"]', '[1,"a",null]'], ['["a"]']),
    ({"type": "array", "prefixItems": [INT, INT], "maxItems": 1}, ["[1]"], ["[1,2]"]),
    ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
    (PAIR, ["{}", '{"a":1,"b":"x"}'], ['{"a":"x"}', '{"c":1}']),
    (PAIR | {"required": ["b"]}, ['{"b":"x"}', '{"a":1,"b":"x"}'], ["{}", '{"a":1}']),
    (PAIR | {"required": ["z"]}, ['{"z":1}', '{"a":1,"z":2}'], ["{}", '{"a":1}']),
    (PAIR | {"additionalProperties": INT}, ['{"a":1,"c":2}'], ['{"a":"x"}', '{"c":"x"}', r'{"\u0061":"x"}']),
    (PAIR | {"minProperties": 1}, ['{"a":1}'], ["{}"]),
    (PAIR | {"maxProperties": 1}, ["{}", '{"b":""}'], ['{"a":1,"b":""}']),
    ({"type": "object"}, ["{}", '{"a":{"b":[]}}'], ["[]"]),
    ({"type": "object", "additionalProperties": INT}, ["{}", '{"x":1}'], ['{"x":"a"}']),
    ({"type": "object", "properties": {}, "additionalProperties": False}, ["{}"], ['{"a":1}']),
    ({"type": "object", "patternProperties": {"a.*": INT}}, ["{}", '{"ab":1}'], ['{"b":1}', '{"ab":""}']),
    ({"type": "object", "propertyNames": {"pattern": "[a-c]+"}}, ["{}", '{"ab":null}'], ['{"x":1}']),
    (
        {"type": "object", "properties": {'a "b\\é/': INT}, "required": ['a "b\\é/']},
        [r'{"a \"b\\é/":1}'],
        ["{}"],
    ),
    (
        {"enum": ['a"b', "é", "\u2028", "a/b", 1.5, None, {"a": [1]}]},
        [r'"a\"b"', '"é"', '"a/b"', "null"],
        ['"a"b"'],
    ),
    ({"type": "string", "enum": ["a", 1, None]}, ['"a"'], ["1", "null"]),
    ({"const": {"a": 1, "b": [1, 2]}}, ['{"a":1,"b":[1,2]}'], ["{}"]),
    (
        {"anyOf": [{"type": "string", "maxLength": 1}, INT, {"type": "null"}]},
        ["null", '"a"', "5"],
        ['"ab"', "[]"],
    ),
    ({"type": "object", "anyOf": [PAIR, {"required": ["q"]}]}, ["{}", '{"q":1}'], ['{"a":"x"}', "1"]),
    ({"oneOf": [CAT, DOG]}, ['{"kind":"cat","lives":9}'], ["{}", '{"kind":"cat","bark":true}']),
    ({"oneOf": [{"type": "string"}, INT]}, ["1", '"a"'], ["null"]),
    ({"allOf": [INT], "title": "t"}, ["1"], ['"a"']),
    ({"$ref": "#/$defs/n", "$defs": {"n": NODE}}, ['{"c":[{"c":[]}]}'], ['{"c":[1]}']),
    ({"type": "array", "items": {"$ref": "#"}}, ["[[],[[]]]"], ["[1]"]),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": INT}}, ["1"], ['"a"']),
    ({"$ref": "#/$defs/a%25%22b", "$defs": {'a%"b': INT}}, ["1"], ['"a"']),
    (  # names of the same letters, of the same sum
        {
            "prefixItems": [{"$ref": "#/$defs/a12"}, {"$ref": "#/$defs/a21"}],
            "type": "array",
            "minItems": 2,
            "$defs": {"a12": INT, "a21": {"type": "boolean"}},
        },
        ["[1, true]"],
        ["[1, 1]"],
    ),
    *(({"type": "string", "format": name}, [], ['"\n"']) for name in FORMATS),
]


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=lambda value: json.dumps(value)[:60])
def test_what_fits_the_grammar_fits_the_schema(schema: Any, good: list[str], bad: list[str]) -> None:
    grammar = compiled("json_schema", json.dumps(schema))
    validator = jsonschema.Draft202012Validator(
        schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    for text in good:
        assert fits(grammar, text), text
    for text in bad:
        assert not fits(grammar, text), text
    rng, drawn = random.Random(1), 0
    for _ in range(40):
        if (text := walk(grammar, rng)) is not None:
            validator.validate(json.loads(text))
            drawn += 1
    assert drawn


def test_every_held_keyword_has_a_case() -> None:
    written = json.dumps([schema for schema, _, _ in CASES])
    for keyword in (*WHOLE, *(key for keys in HELD.values() for key in keys)):
        assert f'"{keyword}"' in written, keyword


@pytest.mark.parametrize("keyword", REFUSED)
def test_a_keyword_that_is_not_held_is_named_with_its_place(keyword: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {keyword: {}}}}}
    with pytest.raises(GrammarError, match=re.escape(f"#/properties/a/items: the keyword '{keyword}'")):
        compiled("json_schema", json.dumps(schema))


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"enum": []}, "no value is left"),  # mlc-ai/xgrammar#639: compiled, and wrote {"x": }
        ({"type": "string", "enum": [1]}, "no value is left"),
        (False, "allows nothing"),
        ({"$ref": "https://example.com/s.json"}, "only '#/...' is followed"),
        ({"$ref": "#/$defs/none"}, "names nothing"),
        ({"type": "strin"}, "type: must be one of"),
        ({"typ": "string"}, "'typ' is not known"),
        ({"type": "number", "multipleOf": 0.1}, "'multipleOf' of a number"),
        ({"type": "integer", "multipleOf": 5, "minimum": 3}, "both bounds or none"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "nothing fits"),
        ({"type": "integer", "maximum": 2**63}, "within 2**62"),
        ({"type": "string", "format": "iri"}, "'iri' is not held"),
        ({"type": "string", "pattern": "a", "minLength": 2}, "'minLength' beside 'pattern'"),
        ({"type": "string", "pattern": "(?!a)b"}, "lookahead"),
        ({"type": "string", "pattern": 'a"b'}, "a quote"),
        ({"type": "string", "pattern": "a^b"}, "at the ends"),
        ({"type": "string", "maxLength": 10**9}, "from 0 to 10000"),
        ({"type": "array", "items": [{"type": "integer"}]}, "prefixItems"),
        ({"oneOf": [{"type": "string"}, {"maxLength": 3}]}, "may overlap"),
        ({"allOf": [PAIR, PAIR]}, "'allOf' with several"),
        ({"anyOf": [PAIR], "properties": {"z": INT}}, "'properties' beside 'anyOf'"),
        ({"type": "object", "minProperties": 2}, "'minProperties' is held"),
        ({"type": "object", "patternProperties": {"a": INT, "b": INT}}, "one pattern"),
        (
            {"type": "object", "required": ["b"], "properties": {"a": INT}, "additionalProperties": False},
            "'b'",
        ),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_cannot_be_held_is_refused_in_words(schema: Any, problem: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(problem)):
        compiled("json_schema", json.dumps(schema))


def test_depth_and_size_are_bounded() -> None:
    deep: Any = INT
    for _ in range(100):
        deep = {"type": "array", "items": deep}
    with pytest.raises(GrammarError, match="deeper than 64"):
        compiled("json_schema", json.dumps(deep))
    with pytest.raises(GrammarError, match="more than 20000 parts"):
        compiled("json_schema", json.dumps({"anyOf": [INT] * 30_000}))


def test_blanks_come_to_an_end() -> None:
    """vllm-project/vllm#38696, mlc-ai/xgrammar#412: blanks up to max_tokens."""
    grammar = compiled("json_schema", json.dumps(PAIR))
    assert fits(grammar, '{\n        "a": 1\n}')
    assert not fits(grammar, "{" + " " * 100 + "}")


def test_strings_hold_no_control_characters_and_no_half_characters() -> None:
    """mlc-ai/xgrammar#286; an escaped surrogate alone cannot be encoded by who reads the answer."""
    grammar = compiled("json_schema", '{"type": "string"}')
    assert not fits(grammar, '"\t"')
    assert not fits(grammar, r'"\ud800"')
    assert fits(grammar, r'"\n\"\\ \u0001 é 😀"')


@pytest.mark.parametrize(
    "choices", [["a", "ab", "abc"], ['say "hi"', "back\\slash", "new\nline", "<|x|>", "日本"]]
)
def test_choices_are_taken_by_the_letter(choices: list[str]) -> None:
    grammar = compiled("choice", json.dumps(choices))
    for choice in choices:
        assert fits(grammar, choice)
    assert not fits(grammar, choices[0] + "?")


def _pattern(rng: random.Random, depth: int) -> str:
    kind = rng.random()
    if depth == 0 or kind < 0.3:
        one = rng.choice(["a", "b", "[ab]", "[^x]", r"\.", ".", r"\d", "é"])
    elif kind < 0.5:
        one = f"({_pattern(rng, depth - 1)}|{_pattern(rng, depth - 1)})"
    elif kind < 0.7:
        one = f"({_pattern(rng, depth - 1)})"
    else:
        return _pattern(rng, depth - 1) + _pattern(rng, depth - 1)
    return one + rng.choice(["", "", "", "?", "*", "+", "??", "{2}", "{1,2}", "{0,2}", "{1,}"])


@pytest.mark.parametrize("seed", range(60))
def test_patterns_mean_what_pythons_mean(seed: int) -> None:
    """``5(x[0-9]+)?`` let ``51`` pass: a group that ends in a repetition, made optional."""
    rng = random.Random(seed)
    pattern = _pattern(rng, 3) if seed else "5(x[0-9]+)?"
    for kind, text in (
        ("json_schema", json.dumps({"type": "string", "pattern": pattern})),
        ("regex", pattern),
    ):
        try:
            grammar = compiled(kind, text)
        except GrammarError as error:
            assert "repetitions" in str(error)  # noqa: PT017
            continue
        for _ in range(5):
            if (got := walk(grammar, rng, 60)) is not None:
                plain = json.loads(got) if kind == "json_schema" else got
                assert re.fullmatch(pattern, plain, re.DOTALL), (kind, pattern, plain)


def test_the_page_lists_what_is_held_and_what_is_not() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "structured.md").read_text()
    for keyword in (*REFUSED, *WHOLE, *FORMATS, *(key for keys in HELD.values() for key in keys)):
        assert f"`{keyword}`" in page, keyword
