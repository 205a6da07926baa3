"""Tool calls in the formats of the families: what their pages show, and what public bug reports brought."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsed import Parsed, parse
from sheaf_runtime.parsers import TOOLS, Arguments, Parser, guess_tool_parser

SCHEMAS: dict[str, Any] = {
    "weather": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    "write": {"type": "object", "properties": {"text": {"type": "string"}}},
    "mail": {"properties": {"sender": {"anyOf": [{"type": "string"}, {"type": "null"}]}}},
    "f": None,
}


def parser(name: str) -> Callable[[], Parser]:
    return lambda: TOOLS[name].make(SCHEMAS)


def hermes(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


def glm(name: str, between: str = "\n", **arguments: str) -> str:
    pairs = (f"<arg_key>{k}</arg_key>{between}<arg_value>{v}</arg_value>" for k, v in arguments.items())
    return f"<tool_call>{between.join([name, *pairs, '</tool_call>'])}"


F1 = '{"name": "f", "arguments": {"a": 1}}'
CALL = ("f", '{"a": 1}')

HERMES: dict[str, tuple[str, Parsed]] = {
    "one": (
        hermes('{"name": "weather", "arguments": {"city": "Paris"}}'),
        [("weather", '{"city": "Paris"}')],
    ),
    "words before": (f"Let me see.\n{hermes(F1)}", [("text", "Let me see.\n"), CALL]),
    "words behind": (f"{hermes(F1)} Done.", [CALL, ("text", " Done.")]),
    "two": (f"{hermes(F1)}\n{hermes(F1)}", [CALL, CALL]),
    "two in one tag": (hermes(f"{F1}\n{F1}"), [CALL, CALL]),
    "a list in one tag": (hermes(f"[{F1}, {F1}]"), [CALL, CALL]),
    "only blanks around": (f"\n\n{hermes(F1)}\n\n", [CALL]),
    "blanks and no call": ("  \n", [("text", "  \n")]),
    "keys the other way round": (hermes('{"arguments": {"a": 1}, "name": "f"}'), [CALL]),
    # vllm#28806, #11392: parameterless calls lost their arguments
    "empty arguments": (hermes('{"name": "f", "arguments": {}}'), [("f", "{}")]),
    "no arguments": (hermes('{"name": "f"}'), [("f", "{}")]),
    "null arguments": (hermes('{"name": "f", "arguments": null}'), [("f", "{}")]),
    "arguments in a string": (hermes('{"name": "f", "arguments": "{\\"a\\": 1}"}'), [CALL]),
    # vllm#10395, #9693: braces and marks within strings
    "braces in a string": (hermes('{"name": "f", "arguments": {"a": "}}{"}}'), [("f", '{"a": "}}{"}')]),
    "the mark in a string": (
        hermes('{"name": "f", "arguments": {"a": "</tool_call>"}}'),
        [("f", '{"a": "</tool_call>"}')],
    ),
    "escapes": (
        hermes('{"name": "f", "arguments": {"a": "\\u00e9 \\"x\\" \\\\"}}'),
        [("f", '{"a": "\\u00e9 \\"x\\" \\\\"}')],
    ),
    # models write these; a strict reader throws the call away
    "a line break in a string": (
        hermes('{"name": "f", "arguments": {"a": "x\ny"}}'),
        [("f", '{"a": "x\\ny"}')],
    ),
    "an escape that is none": (hermes('{"name": "f", "arguments": {"a": "\\d"}}'), [("f", '{"a": "\\\\d"}')]),
    "a brace too few": ('<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', [CALL]),
    "a brace too many": (hermes(F1 + "}"), [CALL]),
    "no closing tag": (f"<tool_call>\n{F1}", [CALL]),
    "numbers and words": (
        hermes('{"name": "f", "arguments": {"a": [-1.5e3, true, null]}}'),
        [("f", '{"a": [-1.5e3, true, null]}')],
    ),
    "a name that no tool has": (hermes('{"name": "g", "arguments": {}}'), [("g", "{}")]),
    # no calls: content to the letter
    "malformed arguments": (
        hermes('{"name": "f", "arguments": {"a": None}}') + " tail",
        [("text", hermes('{"name": "f", "arguments": {"a": None}}') + " tail")],
    ),
    "malformed, then a call": (
        f"<tool_call>{{bad}}</tool_call>\n{hermes(F1)}",
        [("text", "<tool_call>{bad}</tool_call>\n"), CALL],
    ),
    "no name": (hermes('{"arguments": {}}'), [("text", hermes('{"arguments": {}}'))]),
    "a list as arguments": (
        hermes('{"name": "f", "arguments": [1]}'),
        [("text", hermes('{"name": "f", "arguments": [1]}'))],
    ),
    # club-3090#72: prose about the tag silenced the stream
    "the tag in prose": (
        "the tag <tool_call> begins a call",
        [("text", "the tag <tool_call> begins a call")],
    ),
    "half a tag at the end": ("a <tool_ca", [("text", "a <tool_ca")]),
    "cut off in the name": ('<tool_call>{"name": "f', [("text", '<tool_call>{"name": "f')]),
    "cut off in the arguments": ('<tool_call>{"name": "f", "arguments": {"a": "x', [("f", '{"a": "x')]),
}

MISTRAL: dict[str, tuple[str, Parsed]] = {
    # mlx-lm#1374, #1448: either form was dropped
    "list": (f"[TOOL_CALLS] [{F1}, {F1}]", [CALL, CALL]),
    "names": ('[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]f{"a": 1}', [CALL, CALL]),
    "names and arguments": ('[TOOL_CALLS]f[ARGS]{"a": 1}', [CALL]),
    "ids": ('[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{"a": 1}', [CALL]),
    "words behind": ('[TOOL_CALLS]f[ARGS]{"a": 1}\n\nLet me.', [CALL, ("text", "\n\nLet me.")]),
    # vllm#30724: braces before the mark
    "braces before": ('{x} [TOOL_CALLS]f{"a": 1}', [("text", "{x} "), CALL]),
    "nested": ('[TOOL_CALLS]f{"a": {"b": "}"}}', [("f", '{"a": {"b": "}"}}')]),
    "words": ("[TOOL_CALLS]hello there {}", [("text", "[TOOL_CALLS]hello there {}")]),
    "twice the mark": ('[TOOL_CALLS][TOOL_CALLS]f{"a": 1}', [("text", "[TOOL_CALLS]"), CALL]),
    "malformed": ("[TOOL_CALLS]f{a}", [("text", "[TOOL_CALLS]f{a}")]),
    "an empty list": ("[TOOL_CALLS][]", [("text", "[TOOL_CALLS][]")]),
}

P1 = '{"name": "f", "parameters": {"a": 1}}'
LLAMA: dict[str, tuple[str, Parsed]] = {
    "one": (P1, [CALL]),
    "behind the tag": (f"<|python_tag|>{P1}", [CALL]),
    # dynamo#9536, vllm#49923: calls behind the first were dropped
    "semicolons": (f"<|python_tag|>{P1};{P1}; {P1}", [CALL, CALL, CALL]),
    "lines": (f"{P1}\n{P1}", [CALL, CALL]),
    "prose with braces behind": (f"{P1}\nI used {{it}}", [CALL, ("text", "\nI used {it}")]),
    "with a type": ('{"type": "function", "name": "f", "parameters": {"a": 1}}', [CALL]),
    # sglang#35562: JSON that is no call was deleted
    "an empty object": ("{}", [("text", "{}")]),
    "other JSON": ('{"a": 1} is a dict', [("text", '{"a": 1} is a dict')]),
    "somebody's name": ('{"name": "Al", "age": 3}', [("text", '{"name": "Al", "age": 3}')]),
    "a name alone": ('{"name": "f"}', [("text", '{"name": "f"}')]),
    "amid prose": (f"Say {P1}", [("text", f"Say {P1}")]),
    "numbers": ("[1, 2]", [("text", "[1, 2]")]),
    "code": ("<|python_tag|>print(1)", [("text", "<|python_tag|>print(1)")]),
}


def xml(*parameters: tuple[str, str], name: str = "weather") -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters)
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


QWEN3_CODER: dict[str, tuple[str, Parsed]] = {
    "typed": (xml(("city", "Paris"), ("days", "3")), [("weather", '{"city": "Paris", "days": 3}')]),
    "words before": (f"See:\n{xml(('days', '3'))}", [("text", "See:\n"), ("weather", '{"days": 3}')]),
    "two": (xml(("days", "3")) + "\n" + xml(name="f"), [("weather", '{"days": 3}'), ("f", "{}")]),
    # vllm#35266: the opening brace was lost when all came at once
    "none": (xml(name="f"), [("f", "{}")]),
    "lines and quotes": (
        xml(("text", 'a "b"\n\n  c\\'), name="write"),
        [("write", '{"text": "a \\"b\\"\\n\\n  c\\\\"}')],
    ),
    # ollama#16693: the outer tag forgotten
    "no outer tag": (
        "<function=f>\n<parameter=a>\nx\n</parameter>\n</function>\n</tool_call>",
        [("f", '{"a": "x"}')],
    ),
    # vllm#37829, ollama#17914: closing tags forgotten
    "no closing tag": (
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n<parameter=days>\n2\n</function>\n</tool_call>",
        [("weather", '{"city": "Rome", "days": 2}')],
    ),
    # llama.cpp#24807: a closing tag twice
    "twice": (
        "<tool_call><function=f><parameter=a>x</parameter></parameter></function></tool_call>",
        [("f", '{"a": "x"}')],
    ),
    # vllm#34919: the tags as text of a value
    "tags in a value": (
        xml(("text", "<a></parameter> and </function> <parameter= x"), name="write"),
        [("write", '{"text": "<a></parameter> and </function> <parameter= x"}')],
    ),
    # llama.cpp#21771: Python's words
    "Python's words": (
        "<tool_call><function=weather><parameter=days>None</parameter></function></tool_call>",
        [("weather", '{"days": null}')],
    ),
    "not of its type": (xml(("days", "soon")), [("weather", '{"days": "soon"}')]),
    # vllm#55497: a tag that names nothing
    "no name": (
        "<tool_call>\n<function=f>\n<parameter=\n</parameter>\n</function>\n</tool_call>",
        [("f", "{}")],
    ),
    "the tag in prose": (
        "<tool_call> begins it, <function also",
        [("text", "<tool_call> begins it, <function also")],
    ),
    "the end forgotten": (
        "<tool_call>\n<function=write>\n<parameter=text>\na\n</parameter>",
        [("write", '{"text": "a"}')],
    ),
}

GRANITE: dict[str, tuple[str, Parsed]] = {
    "3.0": (f"<|tool_call|>[{F1}, {F1}]", [CALL, CALL]),
    "3.1": (f"<tool_call>[{F1}]", [CALL]),
    "spaced": (f"<|tool_call|> [\n{F1}\n]\n", [CALL]),
    "words": ("<|tool_call|> none", [("text", "<|tool_call|> none")]),
}

ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
OPENAI: dict[str, tuple[str, Parsed]] = {
    "final": (f"{ANALYSIS}<|channel|>final<|message|>Hello", [("thought", "Hm."), ("text", "Hello")]),
    "call": (
        f'{ANALYSIS}<|channel|>commentary to=functions.f <|constrain|>json<|message|>{{"a": 1}}<|call|>',
        [("thought", "Hm."), CALL],
    ),
    "recipient first": (' to=functions.f<|channel|>commentary <|constrain|>json<|message|>{"a": 1}', [CALL]),
    "in analysis": ('<|channel|>analysis to=functions.f code<|message|>{"a": 1}', [CALL]),
    "preamble": (
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.f"
        '<|message|>{"a": 1}<|call|>',
        [("text", "I look."), CALL],
    ),
    "two": (
        '<|channel|>commentary to=functions.f<|message|>{"a": 1}<|call|><|start|>assistant'
        '<|channel|>commentary to=functions.f<|message|>{"a": 1}<|call|>',
        [CALL, CALL],
    ),
    "no arguments": ("<|channel|>commentary to=functions.f<|message|><|call|>", [("f", "{}")]),
    # TensorRT-LLM#9256: marks in the content
    "without recipient": ('<|channel|>commentary<|message|>{"a": 1}<|end|>', [("text", '{"a": 1}')]),
    "no header": ("Hello", [("text", "Hello")]),
    "cut off in a header": (f"{ANALYSIS}<|channel|>fin", [("thought", "Hm.")]),
    "a header that never ends": ("<|channel|>final Hello there", [("text", "Hello there")]),
    # vllm#37071: the last message had no end
    "cut off": ("<|channel|>analysis<|message|>Hm", [("thought", "Hm")]),
}

TABLE = {
    "hermes": HERMES,
    "mistral": MISTRAL,
    "llama3_json": LLAMA,
    "qwen3_coder": QWEN3_CODER,
    "granite": GRANITE,
    "openai": OPENAI,
    "json": {"required": (f"[{P1}, {P1}]", [CALL, CALL])},
    "phi4_mini_json": {"list": (f"functools[{F1}]", [CALL])},
    "jamba": {"list": (f"<tool_calls>[{F1}]</tool_calls>", [CALL])},
    "granite-20b-fc": {"two": (f"<function_call> {F1}\n<function_call> {F1}", [CALL, CALL])},
}
GLM = {
    "one": (glm("weather", city="Paris", days="2"), [("weather", '{"city": "Paris", "days": 2}')]),
    "words around": (f"So.\n{glm('f')} Done.", [("text", "So.\n"), ("f", "{}"), ("text", " Done.")]),
    # GLM 4.7 writes no line breaks
    "no line breaks": (glm("f", "", a="1"), [CALL]),
    "two": (f"{glm('f', a='1')}\n{glm('f', a='1')}", [CALL, CALL]),
    "no closing tag": (glm("f", a="1").removesuffix("</tool_call>"), [CALL]),
    # vllm#32436: calls without arguments broke the parser
    "nothing": (glm("f"), [("f", "{}")]),
    # vllm#40195, vllm-ascend#12261: the quotes of strings that may be null were lost in streams
    "a string that may be null": (glm("mail", sender="Smith"), [("mail", '{"sender": "Smith"}')]),
    "null for it": (glm("mail", sender="null"), [("mail", '{"sender": null}')]),
    # sglang#35564: whole numbers came as strings, words as bare words, objects at the end unclosed
    "words for a number": (glm("weather", days="two"), [("weather", '{"days": "two"}')]),
    "a number in a string": (glm("weather", city="10001"), [("weather", '{"city": "10001"}')]),
    "an object": (glm("f", a='{"b": [1]}'), [("f", '{"a": {"b": [1]}}')]),
    "lines and marks in a value": (
        glm("write", text="a\n</tool_call> <b>\n"),
        [("write", '{"text": "a\\n</tool_call> <b>\\n"}')],
    ),
    "a key with blanks around": (
        "<tool_call>f\n<arg_key> a </arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
        [CALL],
    ),
    "prose": ("the tag <tool_call> begins <a> call", [("text", "the tag <tool_call> begins <a> call")]),
    "JSON is no call here": (hermes(F1), [("text", hermes(F1))]),
    "cut off in the value": (
        "<tool_call>write\n<arg_key>text</arg_key><arg_value>ab",
        [("write", '{"text": "ab"}')],
    ),
}

DEEPSEEK_SECTION = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
DEEPSEEK_CALL = '<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>'
DEEPSEEK_31_CALL = '<｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>'
KIMI_CALL = '<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|>'
KIMI_SECTION = ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>")


def headed(section: tuple[str, str], call: str) -> dict[str, tuple[str, Parsed]]:
    begin, end = section
    return {
        "one": (f"{begin}{call}{end}", [CALL]),
        "words before": (f"So.\n{begin}{call}{end}", [("text", "So.\n"), CALL]),
        "two": (f"{begin}{call}\n{call}{end}", [CALL, CALL]),
        "no section": (call, [CALL]),
        "no end": (f"{begin}{call}", [CALL]),
        "blanks": (f"{begin}\n{call}\n{end}\n", [CALL]),
        "malformed": (
            f"{begin}{call.replace('1', 'x')}{end}",
            [("text", f"{begin}{call.replace('1', 'x')}{end}")],
        ),
        "an empty section": (f"{begin}{end}", [("text", f"{begin}{end}")]),
        "cut off": (f"{begin}{call.partition('1')[0]}", [("f", '{"a": ')]),
        "cut off in the head": (
            f"a {begin}{call.partition('f')[0]}",
            [("text", f"a {begin}{call.partition('f')[0]}")],
        ),
        "braces in a string": (f"{begin}{call.replace('1', BRACES)}{end}", [("f", f'{{"a": {BRACES}}}')]),
    }


BRACES = '"}</x>{"'
PYTHONIC = {
    "one": ('[weather(city="Paris", days=2)]', [("weather", '{"city": "Paris", "days": 2}')]),
    "two": ("[f(a=1), f(a=1)]", [CALL, CALL]),
    "nothing": ("[f()]", [("f", "{}")]),
    "quotes": ("""[f(a='it\\'s "x"', b="")]""", [("f", """{"a": "it's \\"x\\"", "b": ""}""")]),
    "brackets in a string": ("[f(a=')]}')]", [("f", '{"a": ")]}"}')]),
    "values": (
        "[f(a=[1, -2.5], b={'c': None, 'd': (True, False)})]",
        [("f", '{"a": [1, -2.5], "b": {"c": null, "d": [true, false]}}')],
    ),
    "JSON's words": ("[f(a=true, b=null)]", [("f", '{"a": true, "b": null}')]),
    "lines": ("[\n  f(\n    a=1,\n  ),\n]", [CALL]),
    "three quotes": ('[f(a="""x\n"y""")]', [("f", '{"a": "x\\n\\"y"}')]),
    "words behind": ("[f(a=1)] Done.", [CALL, ("text", " Done.")]),
    "another name": ("[g(a=1)]", [("text", "[g(a=1)]")]),
    "a list": ("[1, 2]", [("text", "[1, 2]")]),
    "a link": ("[weather](http://x)", [("text", "[weather](http://x)")]),
    "positional": ("[f(1)]", [("text", "[f(1)]")]),
    "code": ("[f(a=open('x').read())]", [("text", "[f(a=open('x').read())]")]),
    "not a number": ("[f(a=1e999)]", [("text", "[f(a=1e999)]")]),
    "cut off": ("[f(a=1), f(a=", [CALL, ("text", " f(a=")]),
    "deep": (f"[f(a={'[' * 99}", [("text", f"[f(a={'[' * 99}")]),
    "signs without end": (f"[f(a={'-' * 9999}1)]", [("text", f"[f(a={'-' * 9999}1)]")]),
}
COHERE_CALL = '{"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}}'
TABLE |= {
    "glm45": GLM,
    "deepseek_v3": headed(DEEPSEEK_SECTION, DEEPSEEK_CALL),
    "deepseek_v31": headed(DEEPSEEK_SECTION, DEEPSEEK_31_CALL),
    "kimi_k2": headed(KIMI_SECTION, KIMI_CALL)
    | {"a bare name": (KIMI_CALL.replace("functions.", "").replace(":0", ""), [CALL])},
    "pythonic": PYTHONIC,
    "llama4_pythonic": {
        **PYTHONIC,
        # vllm#46863: the model wrote JSON, which stayed content
        "JSON": ('{"type": "function", "name": "f", "parameters": {"a": 1}}', [CALL]),
        "a list of JSON": (f"[ {P1}, {P1}]", [CALL, CALL]),
        "a lone bracket": (" [", [("text", " [")]),
        "marks": (
            "So <|python_start|>[g(a=1)]<|python_end|>.",
            [("text", "So "), ("g", '{"a": 1}'), ("text", ".")],
        ),
    },
    "olmo3": {
        "lines": ("<function_calls>\nf(a=1)\nf(a=1)\n</function_calls>", [CALL, CALL]),
        "words": ("[f(a=1)]", [("text", "[f(a=1)]")]),
    },
    "cohere_command": {
        "two": (
            f"<|START_ACTION|>[\n    {COHERE_CALL},\n    {COHERE_CALL}\n]<|END_ACTION|>",
            [CALL, CALL],
        ),
        "one without a list": (f"<|START_ACTION|>{COHERE_CALL}<|END_ACTION|>", [CALL]),
    },
}
CASES = [
    pytest.param(name, text, parsed, id=f"{name}: {case}")
    for name, cases in TABLE.items()
    for case, (text, parsed) in cases.items()
]


@pytest.mark.parametrize(("name", "text", "parsed"), CASES)
def test_the_whole_text_and_each_character_alone(name: str, text: str, parsed: Parsed) -> None:
    assert parse(parser(name), text) == parsed
    assert parse(parser(name), text, range(1, len(text))) == parsed


X = "x" * 500


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", hermes(f'{{"name": "f", "arguments": {{"a": "{X}"}}}}')),
        ("mistral", f'[TOOL_CALLS]f{{"a": "{X}"}}'),
        ("llama3_json", f'{{"name": "f", "parameters": {{"a": "{X}"}}}}'),
        ("qwen3_coder", xml(("text", X), name="write")),  # sglang#27005
        ("glm45", glm("write", text=X)),  # sglang#11888
        ("deepseek_v31", f'<｜tool▁call▁begin｜>f<｜tool▁sep｜>{{"a": "{X}"}}<｜tool▁call▁end｜>'),
        ("openai", f'<|channel|>commentary to=functions.f<|message|>{{"a": "{X}"}}'),
    ],
)
def test_arguments_come_as_they_are_written(name: str, text: str) -> None:
    made = parser(name)()
    sizes = [sum(len(event.text) for event in made.push(c) if isinstance(event, Arguments)) for c in text]
    assert max(sizes) < 20
    assert sum(map(bool, sizes)) > 490


PIECES = [
    *(
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|tool_call|>",
        "<|python_tag|>",
        "functools",
        "[ARGS]",
    ),
    *(
        "<function=f>",
        "<function=",
        "</function>",
        "<parameter=text>",
        "<parameter=",
        "</parameter>",
        "[",
        "]",
    ),
    *(
        "<|channel|>",
        "analysis",
        "final",
        "<|message|>",
        "<|start|>",
        "<|end|>",
        " to=functions.f",
        "<|call|>",
    ),
    *(
        '{"name": "f", ',
        '"arguments": ',
        '"parameters": ',
        '{"a": 1}',
        "}",
        "{",
        F1,
        P1,
        "f",
        ";",
        ",",
        "null",
    ),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", *DEEPSEEK_SECTION, DEEPSEEK_CALL),
    *(
        DEEPSEEK_31_CALL,
        KIMI_CALL,
        *KIMI_SECTION,
        "<|START_ACTION|>",
        "<|END_ACTION|>",
        "<|tool_call_begin|>",
    ),
    *("<|tool_call_argument_begin|>", "[f(a=", "f(", ")", "'", '"""', "<|python_start|>", "<function_calls>"),
    *(" ", "\n", "word", '"', "\\", "<", "1", "é", "0", "-"),
]


@given(
    name=st.sampled_from(sorted(TOOLS)),
    pieces=st.lists(st.sampled_from(PIECES), max_size=14),
    cuts=st.lists(st.integers(0, 200), max_size=8),
    ended=st.booleans(),
)
@settings(max_examples=1500, deadline=None)
def test_how_the_text_is_cut_makes_no_difference(
    name: str, pieces: list[str], cuts: list[int], ended: bool
) -> None:
    text = "".join(pieces)
    whole = parse(parser(name), text, ended=ended)
    inside = sorted(cut for cut in cuts if cut <= len(text))
    assert parse(parser(name), text, inside, ended=ended) == whole
    assert parse(parser(name), text, range(len(text)), ended=ended) == whole
    if name != "openai" and all(kind == "text" for kind, _ in whole):
        assert "".join(words for _, words in whole) == text


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("<tool_call>\n{'name': ..., \"arguments\": ...}", "hermes"),
        ("<tool_call>\n<function={{ call.name }}>\n<parameter={{ key }}>", "qwen3_coder"),
        ("{{ '[TOOL_CALLS] [' }}", "mistral"),
        ("{{ '<|python_tag|>' + call.name }}", "llama3_json"),
        ("<|start_of_role|>assistant<|end_of_role|><|tool_call|>", "granite"),
        ("<|start|>assistant<|channel|>commentary to=functions.{{ name }}<|message|>", "openai"),
        ("<tool_call>{{ name }}\n<arg_key>{{ key }}</arg_key><arg_value>", "glm45"),
        ("<｜tool▁sep｜>{{ name }}\n```json", "deepseek_v3"),
        ("{{ name }}<｜tool▁sep｜>{{ arguments }}", "deepseek_v31"),
        ("<|tool_calls_section_begin|>", "kimi_k2"),
        ("<|START_ACTION|>[", "cohere_command"),
        ("<function_calls>{{ name }}", "olmo3"),
        ("{{ messages }}", None),
    ],
)
def test_the_template_tells_the_parser(template: str, name: str | None) -> None:
    assert guess_tool_parser(template) == name
