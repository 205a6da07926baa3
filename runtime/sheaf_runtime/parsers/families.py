"""Which parser reads which family's answers, under vLLM's names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from sheaf_runtime.parsers import harmony, shapes
from sheaf_runtime.parsers.by_beginning import ByBeginning
from sheaf_runtime.parsers.events import Parser
from sheaf_runtime.parsers.glm import Glm
from sheaf_runtime.parsers.headed import HeadedCalls, Heads
from sheaf_runtime.parsers.json_calls import Format, JsonCalls
from sheaf_runtime.parsers.plain import Plain
from sheaf_runtime.parsers.pythonic import Pythonic, Style
from sheaf_runtime.parsers.qwen3_coder import Qwen3Coder
from sheaf_runtime.parsers.reasoning import Marks, Thinking

Schemas = Mapping[str, Any]  # the parameters of each tool, by its name


@dataclass(frozen=True)
class Tools:
    """``marks`` have to stay in the text, though the tokenizer may call them special. ``told_by``: what the
    chat template of such a model says. ``id_length``: of the ids of calls, where templates insist on one.
    ``shape``: answers with calls as a grammar may hold them; None: it cannot."""

    make: Callable[[Schemas], Parser]
    marks: tuple[str, ...] = ()
    told_by: tuple[str, ...] = ()
    id_length: int | None = None
    shape: shapes.Calls | None = None


def _json(*opens: str, closes: tuple[str, ...] = (), bare: bool = False, named: bool = False) -> Any:
    return partial(JsonCalls, Format(opens, closes, bare=bare, named=named))


def _headed(heads: Heads, marks: tuple[str, ...], told_by: tuple[str, ...], shape: shapes.Calls) -> Tools:
    return Tools(lambda _: HeadedCalls(heads), (*heads.marks, *marks), told_by, shape=shape)


def _or_bare_json(names: Collection[str], parser: Parser) -> Parser:
    return ByBeginning(JsonCalls(Format((), bare=True), names), parser)


_ARG_TAGS = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
HERMES = Tools(
    _json("<tool_call>", closes=("</tool_call>",)),
    ("<tool_call>", "</tool_call>"),
    ("<tool_call>", '"arguments"'),
    shape=shapes.hermes,
)
GRANITE = Tools(
    _json("<|tool_call|>", "<tool_call>", closes=("</tool_call>",)),
    ("<|tool_call|>", "<tool_call>", "</tool_call>"),
    ("<|tool_call|>",),
    shape=shapes.granite,
)
LLAMA = Tools(
    _json("<|python_tag|>", bare=True), ("<|python_tag|>",), ("<|python_tag|>",), shape=shapes.llama
)
MISTRAL = Tools(
    _json("[TOOL_CALLS]", named=True),
    ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    ("[TOOL_CALLS]",),
    id_length=9,
    shape=shapes.mistral,
)
QWEN3_CODER = Tools(
    Qwen3Coder,
    ("<tool_call>", "</tool_call>"),
    ("<function=", "<parameter="),
    shape=shapes.qwen3_coder,
)
GLM = Tools(Glm, ("<tool_call>", "</tool_call>", *_ARG_TAGS), ("<arg_key>", "<arg_value>"), shape=shapes.glm)
COHERE = Tools(
    _json("<|START_ACTION|>", closes=("<|END_ACTION|>",)),
    ("<|START_ACTION|>", "<|END_ACTION|>"),
    ("<|START_ACTION|>",),
    shape=shapes.cohere,
)
_DEEPSEEK_MARKS = ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")
_DEEPSEEK_SECTION = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_DEEPSEEK_SEP = "<｜tool▁sep｜>"
DEEPSEEK_V3 = _headed(
    Heads(_DEEPSEEK_SECTION, *_DEEPSEEK_MARKS, rf"\s*function{_DEEPSEEK_SEP}\s*([\w.:/-]+)\s*```json\s*"),
    (_DEEPSEEK_SEP,),
    ("<｜tool▁sep｜>", "```json"),
    shapes.deepseek_v3,
)
DEEPSEEK_V31 = _headed(
    Heads(_DEEPSEEK_SECTION, *_DEEPSEEK_MARKS, rf"\s*([\w.:/-]+)\s*{_DEEPSEEK_SEP}\s*"),
    (_DEEPSEEK_SEP,),
    ("<｜tool▁sep｜>",),
    shapes.deepseek_v31,
)
KIMI_K2 = _headed(
    Heads(
        ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        "<|tool_call_begin|>",
        "<|tool_call_end|>",
        r"\s*(?:functions\.)?([\w.:/-]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*",
    ),
    ("<|tool_call_argument_begin|>",),
    ("<|tool_calls_section_begin|>",),
    shapes.kimi,
)
PYTHONIC = Tools(partial(Pythonic, Style()), shape=shapes.pythonic)
_LLAMA_STYLE = Style(("<|python_start|>",), ("<|python_end|>",))
LLAMA_PYTHONIC = Tools(  # some of these models write JSON
    lambda names: _or_bare_json(names, Pythonic(_LLAMA_STYLE, names)),
    ("<|python_start|>", "<|python_end|>"),
    shape=shapes.llama_pythonic,
)
OLMO3 = Tools(
    partial(Pythonic, Style(("<function_calls>",), ("</function_calls>",), bare=False)),
    ("<function_calls>", "</function_calls>"),
    ("<function_calls>",),
    shape=shapes.olmo3,
)
OPENAI = Tools(lambda _: harmony.Harmony(with_calls=True), harmony.MARKS, ("<|channel|>", "<|message|>"))

# The order is that of guessing: what says more comes first.
TOOLS: Mapping[str, Tools] = MappingProxyType(
    {
        "openai": OPENAI,
        "mistral": MISTRAL,
        "qwen3_coder": QWEN3_CODER,
        "qwen3_xml": QWEN3_CODER,
        "glm45": GLM,
        "glm47": GLM,
        "cohere_command": COHERE,
        "deepseek_v3": DEEPSEEK_V3,
        "deepseek_v31": DEEPSEEK_V31,
        "kimi_k2": KIMI_K2,
        "olmo3": OLMO3,
        "granite": GRANITE,
        "granite-20b-fc": Tools(
            _json("<function_call>"), ("<function_call>",), ("<function_call>",), shape=shapes.granite_20b
        ),
        "phi4_mini_json": Tools(_json("functools"), told_by=("functools[",), shape=shapes.phi),
        "jamba": Tools(
            _json("<tool_calls>", closes=("</tool_calls>",)),
            ("<tool_calls>", "</tool_calls>"),
            ("<tool_calls>",),
            shape=shapes.jamba,
        ),
        "hermes": HERMES,
        "granite4": HERMES,
        "llama3_json": LLAMA,
        "llama4_json": LLAMA,
        "pythonic": PYTHONIC,
        "llama4_pythonic": LLAMA_PYTHONIC,
        "json": Tools(_json(bare=True), shape=shapes.bare),
    }
)

GRANITE_MARKS = Marks(
    begins=("Here is my thought process:", "Here's my thought process:"),
    ends=("Here is my response:", "Here's my response:"),
)
THINK = Marks()
REASONING: Mapping[str, Marks | None] = MappingProxyType(
    {
        "deepseek_r1": Marks(assumed=True),
        "cohere_command": Marks(("<|START_THINKING|>",), ("<|END_THINKING|>",)),
        "deepseek_v3": THINK,
        "glm45": THINK,
        "granite": GRANITE_MARKS,
        "kimi_k2": Marks(calls=("<|tool_calls_section_begin|>",)),
        "mistral": Marks(("[THINK]",), ("[/THINK]",)),
        "olmo3": THINK,
        "openai_gptoss": None,  # told by its channels
        "qwen3": Marks(calls=("<tool_call>\n<function=",)),
        "seed_oss": Marks(("<seed:think>",), ("</seed:think>",)),
    }
)


def guess_tool_parser(template: str) -> str | None:
    """The name of the parser for the answers to prompts of this chat template."""
    return next(
        (
            name
            for name, tools in TOOLS.items()
            if tools.told_by and all(mark in template for mark in tools.told_by)
        ),
        None,
    )


def tool_calls(name: str, schemas: Schemas, *, demanded: bool) -> Parser:
    """The parser of one answer's calls. ``demanded`` ones are held, in JSON where the form cannot."""
    parser = TOOLS[name].make(schemas)
    return _or_bare_json(schemas, parser) if demanded and TOOLS[name].shape is not None else parser


def visible_marks(tool_parser: str | None, reasoning_parser: str | None) -> tuple[str, ...]:
    """Special tokens that have to stay in the text to be parsed."""
    marks = TOOLS[tool_parser].marks if tool_parser else ()
    if reasoning_parser is None:
        return marks
    thoughts = REASONING[reasoning_parser]
    return (*marks, *(harmony.MARKS if thoughts is None else thoughts.begins + thoughts.ends))


def in_channels(tool_parser: str | None, reasoning_parser: str | None) -> bool:
    """Whether answers come in gpt-oss's channels."""
    return tool_parser == "openai" or (reasoning_parser is not None and REASONING[reasoning_parser] is None)


def output_parser(
    reasoning_parser: str | None, calls: Parser | None, prompt: str, *, held: bool = False
) -> Parser:
    """The parser of one answer to ``prompt``: thoughts first, if the family has any, then ``calls`` or text.
    ``held``: a grammar lets only their own mark end the thoughts."""
    if reasoning_parser is None or isinstance(calls, harmony.Harmony):
        return calls or Plain()
    marks = REASONING[reasoning_parser]
    if marks is None:
        return harmony.Harmony(with_calls=False)
    if held:
        marks = replace(marks, calls=())
    return Thinking(marks, calls or Plain(), opened=marks.opened_by(prompt))
