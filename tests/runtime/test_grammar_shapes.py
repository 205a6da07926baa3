"""Whatever a grammar of thoughts and calls lets a model say, its parser reads thoughts, the text that was
asked for, and calls whose arguments fit."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from grammar_walk import compiled, fits, wander
from parsed import Parsed, parse
from sheaf_runtime.grammar.native import bindings
from sheaf_runtime.grammar.recipe import recipe_of
from sheaf_runtime.parsers import REASONING, TOOLS, output_parser, tool_calls
from sheaf_runtime.parsers.channels import Channels
from sheaf_runtime.parsers.harmony import MARKS
from sheaf_runtime.parsers.shapes import Shape, demanded, thoughts
from sheaf_runtime.protocol.grammar import Grammar

PROMPTS = {
    "plain": "assistant\n",
    "opened": "assistant\n{begin}\n",
    "closed": "assistant\n{begin}\n\n{end}\n\n",
}
PLACE = {
    "type": "object",
    "properties": {"side": {"enum": ["left", "right"]}, "n": {"type": "integer"}, "s": {"type": "string"}},
    "required": ["side"],
    "additionalProperties": False,
}
OFFERS = {"place": PLACE, "any": {"type": "object"}}
SHAPED = [
    name
    for name, tools in TOOLS.items()
    if tools.shape and name not in ("granite4", "llama4_json", "qwen3_xml", "glm47")
]
PIECES = [
    *("{", "[", ";", " ", "\n", "<", "<|", "a", "yes", "word ", '"', "}", "</think>", "<think>", "[/THINK]"),
    *('{"name": "place", "parameters": {"side": "up"}}', '{"name":"place","arguments":{}}', "place{", "[{"),
    *('{"parameters": {}, "name": "place"}', "]\n", "; {", "[ARGS]", "Here is my response:", "</seed:think>"),
    *(mark for name in SHAPED for mark in TOOLS[name].marks),
    *("functools", "functools[", "<tool_call>\n<function=place>"),
]


def tag(shape: Shape) -> str:
    return json.dumps({"type": "structural_tag", "format": shape})


def check_calls(parsed: Parsed, text: str) -> int:
    calls = [part for part in parsed if part[0] not in ("text", "thought")]
    for name, arguments in calls:
        assert name in OFFERS, text
        jsonschema.validate(json.loads(arguments), OFFERS[name])
    return len(calls)


A = '{"side": "left"}'
ARGUMENTS, PARAMETERS = (f'{{"name": "place", "{key}": {A}}}' for key in ("arguments", "parameters"))
DEEPSEEK = f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>place\n```json\n{A}\n```<｜tool▁call▁end｜>"
DEEPSEEK_31 = f"<｜tool▁call▁begin｜>place<｜tool▁sep｜>{A}<｜tool▁call▁end｜>"
KIMI = f"<|tool_call_begin|>functions.place:0<|tool_call_argument_begin|>{A}<|tool_call_end|>"
QWEN = "<tool_call>\n<function=place>\n<parameter=side>\nleft\n</parameter>\n</function>\n</tool_call>"
GLM = "<tool_call>place\n<arg_key>side</arg_key>\n<arg_value>left</arg_value>\n</tool_call>"
TWO = {
    "mistral": [
        f"[TOOL_CALLS] [{ARGUMENTS}, {ARGUMENTS}]",
        f"a[TOOL_CALLS]place[ARGS]{A}[TOOL_CALLS]place{A}",
    ],
    "granite": [f"<|tool_call|>[{ARGUMENTS}, {ARGUMENTS}]"],
    "granite-20b-fc": [f"<function_call> {ARGUMENTS}\n<function_call> {ARGUMENTS}"],
    "phi4_mini_json": [f"functools[{ARGUMENTS}, {ARGUMENTS}]"],
    "jamba": [f"<tool_calls>[{ARGUMENTS}, {ARGUMENTS}]</tool_calls>"],
    "hermes": [f"So\n<tool_call>\n{ARGUMENTS}\n</tool_call>\n<tool_call>\n{ARGUMENTS}\n</tool_call>"],
    "llama3_json": [f"<|python_tag|>{PARAMETERS}; {PARAMETERS}", f"[{PARAMETERS}, {PARAMETERS}]"],
    "cohere_command": [
        f'<|START_ACTION|>[{{"tool_call_id": "0", "tool_name": "place", "parameters": {A}}}, '
        f'{{"tool_call_id": "1", "tool_name": "place", "parameters": {A}}}]<|END_ACTION|>'
    ],
    "deepseek_v3": [f"<｜tool▁calls▁begin｜>{DEEPSEEK}\n{DEEPSEEK}<｜tool▁calls▁end｜>"],
    "deepseek_v31": [f"<｜tool▁calls▁begin｜>{2 * DEEPSEEK_31}<｜tool▁calls▁end｜>"],
    "kimi_k2": [f"<|tool_calls_section_begin|>{2 * KIMI}<|tool_calls_section_end|>"],
    "json": [f"[{PARAMETERS}, {PARAMETERS}]"],
    "qwen3_coder": [f"So {QWEN}\n{QWEN}"],
    "glm45": [f"So {GLM}\n{GLM}", (GLM + GLM).replace("\n", "")],
    "pythonic": ['[place(side="left", n=2), place(side="left")]'],
    "llama4_pythonic": ['So <|python_start|>[place(side="left"), place(side="left", s="\\n")]<|python_end|>'],
    "olmo3": ['<function_calls>\nplace(side="left")\nplace(side="left")\n</function_calls>'],
}
WORDS = ["yes", "", "a < b", "say {", " \nyes"]


@pytest.mark.parametrize("name", SHAPED)
def test_calls_fit_and_words_are_free(name: str) -> None:
    tools, rng = TOOLS[name], random.Random(name)
    assert tools.shape is not None
    many, one = (
        compiled("structural_tag", tag(tools.shape(OFFERS, one).among_words())) for one in (False, True)
    )
    for text in TWO[name]:
        assert fits(many, text), text
        assert not fits(one, text), text
        assert check_calls(parse(lambda: tools.make(OFFERS), text), text) == 2
        assert not fits(many, text.replace("left", "up")), text
    assert all(fits(grammar, text) for text in WORDS for grammar in (many, one))
    for grammar, most in ((many, 100), (one, 1)):
        for _ in range(60):
            text = wander(grammar, rng, [*PIECES, *tools.marks * 8])  # type: ignore[assignment]
            if text is not None:
                assert check_calls(parse(lambda: tools.make(OFFERS), text), text) <= most


def alone(name: str, offers: dict[str, Any], one: bool) -> Any:
    shape = TOOLS[name].shape
    assert shape is not None
    return compiled("structural_tag", tag(demanded(shape, offers, one)))


@pytest.mark.parametrize("name", SHAPED)
def test_demanded_calls_come_in_the_form_of_the_family(name: str) -> None:
    """vllm#44447, vllm#35936, sglang#20006: a JSON list was forced on models that write tags, whose calls got
    lost or were one where several were needed; sglang#35564: the second call of a list."""
    rng = random.Random(name)
    many, one = (alone(name, OFFERS, one) for one in (False, True))
    for text in TWO[name]:
        text = re.sub("^(So ?|a)\n?(?=[<\\[])", "", text)
        assert fits(many, text), text
        assert not fits(one, text), text
    assert not any(fits(grammar, text) for text in [*WORDS, f"yes {text}"] for grammar in (many, one))
    found = 0
    for grammar, most in ((many, 100), (one, 1)):
        for _ in range(40):
            text = wander(grammar, rng, [*PIECES, *TOOLS[name].marks * 8])  # type: ignore[assignment]
            if text is None:
                continue
            parsed = parse(lambda: tool_calls(name, OFFERS, demanded=True), text)
            assert 1 <= check_calls(parsed, text) == len(parsed) <= most, text
            found += 1
    assert found > 5


NO_TAGS = {"type": "object", "properties": {"a": {"type": "integer"}}, "minProperties": 1}
IN_JSON: list[tuple[str, str, dict[str, Any]]] = [
    ("qwen3_coder", "f", NO_TAGS),
    ("glm45", "a name", PLACE),
    ("olmo3", "f", {"type": "object", "properties": {"from": {"type": "string"}}, "required": ["from"]}),
    ("llama4_pythonic", "f", NO_TAGS),
    ("deepseek_v3", "a name", PLACE),
    ("mistral", "a name", PLACE),
]


@pytest.mark.parametrize(("name", "function", "schema"), IN_JSON)
def test_what_the_form_cannot_hold_is_demanded_as_json(
    name: str, function: str, schema: dict[str, Any]
) -> None:
    grammar, rng, found = alone(name, {function: schema}, False), random.Random(name), 0
    for _ in range(30):
        text = wander(grammar, rng, PIECES)
        if text is None:
            continue
        parsed = parse(lambda: tool_calls(name, {function: schema}, demanded=True), text)
        assert parsed
        for called, arguments in parsed:
            assert called == function
            jsonschema.validate(json.loads(arguments), schema)
        found += 1
    assert found > 3


def test_names_that_begin_alike_and_calls_without_arguments() -> None:
    """vllm#39757: a name was cut to that of another function; vllm#44326: calls without arguments."""
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    offers = {"get": nothing, "get_weather": nothing}
    for name in SHAPED:
        grammar, rng, called = alone(name, offers, True), random.Random(name), set()
        for _ in range(30):
            text = wander(grammar, rng, ["get_weather", "get"])
            if text is not None:
                ((function, arguments),) = parse(lambda: tool_calls(name, offers, demanded=True), text)  # noqa: B023
                assert json.loads(arguments) == {}
                assert function in text
                called.add(function)
                assert (function == "get_weather") == ("get_weather" in text)
        assert called == offers.keys(), name


ODD: dict[str, dict[str, Any]] = {
    "names with joints": {"f:1": PLACE, "functions.f": PLACE, "f.g/h": PLACE, "7up": PLACE},
    "no plain names": {"get weather": PLACE, 'a"b': PLACE, "<tool_call>": PLACE},
    "words of Python": {"class": PLACE, "None": PLACE},
    "names of arguments": {
        "f": {"type": "object", "properties": {"class": {"type": "string"}, "a-b": {}}, "required": ["class"]}
    },
    "no type": {"f": {"properties": {"a": {"type": "string"}}}},
    "words that look like marks": {
        "f": {
            "type": "object",
            "properties": {"s": {"enum": ["</arg_value>", " a", "b\nc"]}},
            "required": ["s"],
        }
    },
}


@pytest.mark.parametrize("case", ODD)
@pytest.mark.parametrize("name", SHAPED)
def test_odd_functions_are_demanded_too(name: str, case: str) -> None:
    offers, rng = ODD[case], random.Random(name + case)
    grammar, found = alone(name, offers, True), 0
    for _ in range(60):
        text = wander(grammar, rng, [*PIECES, *TOOLS[name].marks, *["\n</parameter>\n"] * 9])
        if text is None:
            continue
        if found == 5:
            break
        ((called, arguments),) = parse(lambda: tool_calls(name, offers, demanded=True), text)
        jsonschema.validate(json.loads(arguments), offers[called])
        found += 1
    assert found


@pytest.mark.parametrize("where", PROMPTS)
@pytest.mark.parametrize("name", sorted(name for name, marks in REASONING.items() if marks is not None))
def test_the_text_behind_the_thoughts_fits(name: str, where: str) -> None:
    marks, rng = REASONING[name], random.Random(name + where)
    assert marks is not None
    prompt = PROMPTS[where].format(begin=marks.begins[0], end=marks.ends[0])
    shape = thoughts(marks, opened=marks.opened_by(prompt), blanks=False)
    assert (shape is None) == (where == "closed")
    grammar = compiled("regex", "(yes|no){1,3}", json.dumps(shape) if shape else "")
    found = 0
    for _ in range(40):
        text = wander(grammar, rng, [*PIECES, *marks.begins * 9, *marks.ends * 9])
        if text is None:
            continue
        parsed = parse(lambda: output_parser(name, None, prompt, held=True), text)  # type: ignore[arg-type, return-value]
        said = [words for kind, words in parsed if kind == "text"]
        assert re.fullmatch("(yes|no){1,3}", "".join(said)), text
        found += 1
    assert found > 5


# --- channels: their marks are single tokens ---------------------------------------------------------------

IDS = {mark: 300 + i for i, mark in enumerate(MARKS)}
END = 256
CHANNELS = Channels(IDS)


def channel_compiler() -> Any:
    core = bindings()
    texts = [bytes([b]) for b in range(256)] + [b""] * 44 + [b"\xff%d" % id_ for id_ in IDS.values()]
    return core.GrammarCompiler(core.TokenizerInfo(texts, 0, len(texts), [END], False), 1, False, -1)


COMPILER = channel_compiler()


def channel_walk(grammar: Any, rng: random.Random, pieces: list[str]) -> str | None:
    """Words in ASCII, marks as they come."""
    matcher = bindings().GrammarMatcher(grammar, None, False, -1, None)
    mask, out, piece = np.zeros((1, 10), np.int32), "", ""
    spelled = {id_: mark for mark, id_ in IDS.items()} | {b: chr(b) for b in range(128)}
    for _ in range(400):
        matcher.fill_next_token_bitmask(mask, 0, False)
        bits = np.unpackbits(mask.view(np.uint8)[0], bitorder="little")
        allowed = [id_ for id_ in spelled if id_ != ord("<") and bits[id_]]
        if bits[END] and (not allowed or rng.random() < 0.2):
            return out
        piece = piece or (rng.choice(pieces) if rng.random() < 0.3 else "")
        if piece and ord(piece[0]) in allowed:
            token, piece = ord(piece[0]), piece[1:]
        else:
            special = [id_ for id_ in allowed if id_ >= 300]
            token, piece = rng.choice(special if special and rng.random() < 0.3 else allowed), ""
        assert matcher.accept_token(token, False)
        out += spelled[token]
    return None


@pytest.mark.parametrize("kind", ["text", "calls", "calls or text"])
def test_channels(kind: str) -> None:
    rng, counts = random.Random(kind), []
    if kind == "text":
        wanted = Grammar(kind="regex", text="(yes|no){1,3}", before=json.dumps(CHANNELS.final()))
    else:
        shape = CHANNELS.calls(OFFERS) if kind == "calls" else CHANNELS.calls_or_text(OFFERS)
        wanted = Grammar(kind="structural_tag", text=tag(shape))
    grammar = recipe_of(wanted).compile(COMPILER)
    for _ in range(80):
        text = channel_walk(grammar, rng, ["hm", "place ", "yes", '{"side": "left"}', "analysis"])
        if text is None:
            continue
        parsed = parse(lambda: TOOLS["openai"].make(OFFERS), text)
        counts.append(check_calls(parsed, text))
        if kind == "text":
            assert re.fullmatch("(yes|no){1,3}", "".join(w for k, w in parsed if k == "text")), text
    assert set(counts) == {"text": {0}, "calls": {1}, "calls or text": {0, 1}}[kind]
