"""Thoughts and answers told apart, also where the template has opened the thoughts, and before tool calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsed import Parsed, parse
from sheaf_runtime.parsers import REASONING, TOOLS, Parser, output_parser

PLAIN, OPENED = "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n"
CLOSED = "<|im_start|>assistant\n<think>\n\n</think>\n\n"  # enable_thinking: false
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
XML = "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"
F = ("f", '{"a": 1}')


def parser(name: str, prompt: str, tools: str | None) -> Callable[[], Parser]:
    def make() -> Parser:
        calls = TOOLS[tools].make({"f": {"properties": {"a": {"type": "integer"}}}}) if tools else None
        return output_parser(name, calls, prompt)

    return make


# name, prompt, tool parser, text, what comes of it
CASES: dict[str, tuple[str, str, str | None, str, Parsed]] = {
    "both marks": ("qwen3", PLAIN, None, "<think>hm</think>yes", [("thought", "hm"), ("text", "yes")]),
    "blanks before": ("qwen3", PLAIN, None, "\n<think>hm</think>yes", [("thought", "hm"), ("text", "yes")]),
    # vllm#34684: the thoughts were told as the answer
    "opened by the template": ("qwen3", OPENED, None, "hm</think>yes", [("thought", "hm"), ("text", "yes")]),
    # the model repeats the template's mark
    "opened twice": ("qwen3", OPENED, None, "<think>hm</think>yes", [("thought", "hm"), ("text", "yes")]),
    "closed by the template": ("qwen3", CLOSED, None, "yes", [("text", "yes")]),
    # modelship#130: plain answers were trapped in the thoughts
    "no thoughts": ("qwen3", PLAIN, None, "yes", [("text", "yes")]),
    # vllm#17349
    "closed for a model that always thinks": ("deepseek_r1", CLOSED, None, "yes", [("text", "yes")]),
    "no mark of a model that always thinks": (
        "deepseek_r1",
        PLAIN,
        None,
        "hm</think>yes",
        [("thought", "hm"), ("text", "yes")],
    ),
    "cut off": ("qwen3", OPENED, None, "hm, so </thi", [("thought", "hm, so </thi")]),
    "cut off in the first mark": ("qwen3", PLAIN, None, "<thi", [("text", "<thi")]),
    "nothing thought": ("qwen3", PLAIN, None, "<think></think>yes", [("text", "yes")]),
    "nothing said": ("qwen3", PLAIN, None, "<think>hm</think>", [("thought", "hm")]),
    # tags as words of the answer, or of the thoughts (lmstudio#1592)
    "marks in the answer": (
        "qwen3",
        PLAIN,
        None,
        "<think>hm</think>write <think> and </think>",
        [("thought", "hm"), ("text", "write <think> and </think>")],
    ),
    "marks amid the answer": (
        "qwen3",
        PLAIN,
        None,
        "write <think>x</think>",
        [("text", "write <think>x</think>")],
    ),
    "a mark in the thoughts": (
        "qwen3",
        PLAIN,
        None,
        "<think>a <think> b</think>c",
        [("thought", "a <think> b"), ("text", "c")],
    ),
    "a call behind": ("qwen3", OPENED, "hermes", f"hm</think>\n\n{CALL}", [("thought", "hm"), F]),
    "words and a call behind": (
        "qwen3",
        OPENED,
        "hermes",
        f"hm</think>\nNow:\n{CALL}",
        [("thought", "hm"), ("text", "\nNow:\n"), F],
    ),
    # a call that is only thought of is none
    "a call in the thoughts": (
        "qwen3",
        OPENED,
        "hermes",
        f"like {CALL}?</think>no",
        [("thought", f"like {CALL}?"), ("text", "no")],
    ),
    # Qwen3.5 calls without closing its thoughts first
    "a call that ends the thoughts": ("qwen3", OPENED, "qwen3_coder", f"hm {XML}", [("thought", "hm "), F]),
    "the tag in the thoughts": (
        "qwen3",
        OPENED,
        "qwen3_coder",
        "a <tool_call> here</think>b",
        [("thought", "a <tool_call> here"), ("text", "b")],
    ),
    # sglang#35083: words before the mark came out in four ways
    "words before the mark": (
        "qwen3",
        PLAIN,
        None,
        "Sure.<think>hm</think>yes",
        [("text", "Sure.<think>hm</think>yes")],
    ),
    # sglang#8099: held back until the end
    "a bracket that begins no mark": ("qwen3", PLAIN, None, "<Direct answer", [("text", "<Direct answer")]),
    # Rapid-MLX#841: it thinks though it was told not to
    "thoughts though closed": (
        "qwen3",
        CLOSED,
        "hermes",
        f"<think>hm</think>yes{CALL}",
        [("thought", "hm"), ("text", "yes"), F],
    ),
    # vllm#48971: marks in the answer began thoughts again, in streams
    "marks in the answer of OLMo 3": (
        "olmo3",
        OPENED,
        None,
        "hm</think>use <think> or </think> here",
        [("thought", "hm"), ("text", "use <think> or </think> here")],
    ),
    # lmdeploy#4754, vllm-mlx#677: a mark in pieces was told as a thought
    "almost a mark": (
        "deepseek_r1",
        OPENED,
        None,
        "a </thin b </th</think>yes",
        [("thought", "a </thin b </th"), ("text", "yes")],
    ),
    # llama.cpp#27661: nothing tells a mark that is quoted from one that is meant; the first ends the thoughts
    "the end mark quoted": (
        "qwen3",
        OPENED,
        None,
        "say `</think>` so</think>yes",
        [("thought", "say `"), ("text", "` so</think>yes")],
    ),
    # vllm#53246: the calls begin without the end of the thoughts
    "Kimi's calls end the thoughts": (
        "kimi_k2",
        OPENED,
        "kimi_k2",
        "hm <|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        '{"a": 1}<|tool_call_end|><|tool_calls_section_end|>',
        [("thought", "hm "), F],
    ),
    "Cohere": (
        "cohere_command",
        PLAIN,
        "cohere_command",
        "<|START_THINKING|>hm<|END_THINKING|><|START_ACTION|>["
        '{"tool_call_id": "0", "tool_name": "f", "parameters": {"a": 1}}]<|END_ACTION|>',
        [("thought", "hm"), F],
    ),
    "granite": (
        "granite",
        PLAIN,
        None,
        "Here is my thought process: hm\nHere is my response: yes",
        [("thought", " hm\n"), ("text", " yes")],
    ),
    "granite's other words": (
        "granite",
        PLAIN,
        None,
        "Here's my thought process: hm Here's my response: yes",
        [("thought", " hm "), ("text", " yes")],
    ),
    "mistral": (
        "mistral",
        PLAIN,
        "mistral",
        '[THINK]hm[/THINK]so[TOOL_CALLS]f[ARGS]{"a": 1}',
        [("thought", "hm"), ("text", "so"), F],
    ),
    "gpt-oss": (
        "openai_gptoss",
        PLAIN,
        None,
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes",
        [("thought", "hm"), ("text", "yes")],
    ),
    "JSON behind the thoughts": (
        "qwen3",
        OPENED,
        None,
        'hm</think>{"a": 1}',
        [("thought", "hm"), ("text", '{"a": 1}')],
    ),
}


@pytest.mark.parametrize(("name", "prompt", "tools", "text", "parsed"), CASES.values(), ids=CASES.keys())
def test_the_whole_text_and_each_character_alone(
    name: str, prompt: str, tools: str | None, text: str, parsed: Parsed
) -> None:
    make = parser(name, prompt, tools)
    assert parse(make, text) == parsed
    assert parse(make, text, range(1, len(text))) == parsed


PIECES = ["<think>", "</think>", "[THINK]", "[/THINK]", "Here is my thought process:", "Here is my response:"]
PIECES += ["<tool_call>\n<function=", CALL, XML, "hm", " ", "\n", "<", "</", "yes"]


@given(
    name=st.sampled_from([name for name, marks in REASONING.items() if marks is not None]),
    prompt=st.sampled_from([PLAIN, OPENED, CLOSED]),
    tools=st.sampled_from([None, "hermes", "qwen3_coder"]),
    pieces=st.lists(st.sampled_from(PIECES), max_size=10),
    cuts=st.lists(st.integers(0, 150), max_size=6),
)
@settings(max_examples=600, deadline=None)
def test_how_the_text_is_cut_makes_no_difference(
    name: str, prompt: str, tools: str | None, pieces: list[str], cuts: list[int]
) -> None:
    text = "".join(pieces)
    make = parser(name, prompt, tools)
    whole = parse(make, text)
    assert parse(make, text, sorted(cut for cut in cuts if cut <= len(text))) == whole
    assert parse(make, text, range(len(text))) == whole
