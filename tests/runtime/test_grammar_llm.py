"""Structured output on a tiny random model: whatever it would like to say, what comes out fits."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from model_folders import byte_fallback, byte_level, metaspace, write_folder
from msgspec.structs import replace
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.grammar import matcher
from sheaf_runtime.grammar.native import bindings
from sheaf_runtime.parsers.reasoning import Marks
from sheaf_runtime.parsers.shapes import thoughts
from sheaf_runtime.protocol.grammar import Grammar
from tiny_llama import write_tiny_llama

SEEDS = range(6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = byte_level()
    folder = write_folder(tmp_path_factory.mktemp("grammar"), tokenizer)
    return write_tiny_llama(folder, vocab_size=tokenizer.get_vocab_size() + 37)  # padded, as many are


def open_llm(folder, depth, **options):
    options = {"block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16} | options
    return LLM(folder, kv_cache_memory=1 << 22, pipeline_depth=depth, **options)


@pytest.fixture(scope="module", params=[0, 1], ids=["depth0", "depth1"])
def llm(folder, request):
    with open_llm(folder, request.param) as llm:
        yield llm


def grammar(kind: Any, text: Any = "") -> Grammar:
    return Grammar(
        kind=kind, text=text if isinstance(text, str) else json.dumps(text), param="structured_outputs"
    )


def sampling(wanted: Grammar | None, seed: int, **more: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.5, "max_tokens": 96, "seed": seed, "grammar": wanted} | more)


def outputs(llm, wanted, **more):
    return llm.generate(["the"] * len(SEEDS), [sampling(wanted, seed, **more) for seed in SEEDS])


@pytest.mark.parametrize(
    ("wanted", "pattern"),
    [
        (grammar("regex", "[a-c]{3}"), "[a-c]{3}"),
        (grammar("regex", "(yes|no)( and (yes|no)){0,3}"), "(yes|no)( and (yes|no)){0,3}"),
        (grammar("choice", ["positive", "positively", "négatif"]), "positive|positively|négatif"),
        (grammar("grammar", 'root ::= "x" | "(" root ")"'), r"\(*x\)*"),
        (
            grammar(
                "structural_tag",
                {
                    "type": "structural_tag",
                    "format": {
                        "type": "tag",
                        "begin": "<n>",
                        "content": {
                            "type": "json_schema",
                            "json_schema": {"type": "integer", "maximum": 999},
                        },
                        "end": "</n>",
                    },
                },
            ),
            r"<n>-?\d+</n>",
        ),
    ],
    ids=["regex", "regex of words", "choice", "grammar", "structural tag"],
)
def test_text_fits_its_grammar(llm, wanted, pattern):
    for got in outputs(llm, wanted):
        assert got.error is None
        if got.finish_reason == "stop":
            assert re.fullmatch(pattern, got.text), got.text
        assert "stop" in {got.finish_reason for got in outputs(llm, wanted)}


def test_others_of_the_batch_are_as_without(llm):
    free = sampling(None, 1, max_tokens=20, ignore_eos=True)
    alone = llm.generate("the", free)[0]
    bound = sampling(grammar("regex", "[a-c]{3}"), 1)
    together = llm.generate(["the"] * 6, [free, bound] * 3)
    assert [c.token_ids for c in together[::2]] == [alone.token_ids] * 3
    assert len({tuple(c.token_ids) for c in together[1::2]}) == 1


@pytest.mark.parametrize("thinks", [False, True], ids=["", "behind thoughts"])
def test_preemption_and_depth_change_nothing(folder, llm, thinks):
    """The pool holds two of these requests at a time; the others are computed again."""
    before = (
        thoughts(Marks(ends=tuple("abcdefghijklmnopqrstuvwxyz")), opened=True, blanks=False)
        if thinks
        else None
    )
    wanted = grammar("regex", "[ab ]{30,40}")
    if before:
        wanted = replace(wanted, before=json.dumps(before))
    params = [sampling(wanted, seed, max_tokens=60) for seed in SEEDS]
    answers = llm.generate(["the"] * len(SEEDS), params)
    expected = [c.token_ids for c in answers]
    pattern = re.compile(f"{'[^a-z]*[a-z]' if thinks else ''}[ab ]{{30,40}}", re.DOTALL)
    ended = [c.text for c in answers if c.finish_reason == "stop"]
    assert ended
    assert all(map(pattern.fullmatch, ended))
    for depth in (0, 1):
        with open_llm(folder, depth, num_gpu_blocks_override=22) as small:
            assert [c.token_ids for c in small.generate(["the"] * len(SEEDS), params)] == expected
            assert small.stats().preemptions > 0


def test_the_end_comes_before_min_tokens_if_nothing_else_is_left(llm):
    for got in outputs(llm, grammar("choice", ["yes"]), min_tokens=50):
        assert (got.text, got.finish_reason) == ("yes", "stop")
    for got in outputs(llm, grammar("regex", "[ab]*"), min_tokens=20, max_tokens=40):
        assert len(got.token_ids) >= 20


def test_ignoring_the_end_adds_nothing_to_the_text(llm):
    for got in outputs(llm, grammar("choice", ["yes", "no"]), ignore_eos=True, max_tokens=30):
        assert got.text in ("yes", "no")
        assert (len(got.token_ids), got.finish_reason) == (30, "length")


def test_a_stop_string_ends_it(llm):
    (got,) = llm.generate("the", sampling(grammar("regex", "(ab){20}"), 1), stop="bab")
    assert (got.text, got.stop_reason) == ("a", "bab")


def test_logprobs_are_the_models_own(llm):
    wanted = sampling(grammar("choice", ["yes"]), 1, logprobs=2)
    (got,) = llm.generate("the", wanted)
    assert len(got.logprobs) == len(got.token_ids)
    assert all(entry.logprob <= 0 for entry in got.logprobs)


def test_what_else_forbids_every_token_ends_that_request_alone(llm):
    (wrong,) = llm.generate("the", sampling(grammar("choice", ["yes"]), 1, allowed_token_ids=(5,)))
    assert wrong.finish_reason == "error"
    assert outputs(llm, grammar("choice", ["yes"]))[0].text == "yes"


@pytest.mark.parametrize("place", ["fill_next_token_bitmask", "accept_token"])
def test_an_exception_of_the_grammars_library_ends_that_request_alone(llm, monkeypatch, place):
    """After three tokens, in the one request of three that has a grammar."""
    prompts = ["the", "a sheaf", "the"]
    free = [sampling(None, seed) for seed in range(3)]
    calm = [c.token_ids for c in llm.generate(prompts, free)]
    native = bindings().GrammarMatcher

    class Breaks:
        def __init__(self, *args):
            self._inner, self._calls = native(*args), 0

        def __getattr__(self, name):
            if name == place:
                self._calls += 1
                if self._calls > 3:
                    raise RuntimeError("a planted fault")
            return getattr(self._inner, name)

    with monkeypatch.context() as patch:
        patch.setattr(matcher, "bindings", lambda: SimpleNamespace(GrammarMatcher=Breaks))
        held = sampling(grammar("regex", "[a-c]{90}"), 1)
        first, bad, last = llm.generate(prompts, [free[0], held, free[2]])
    assert bad.finish_reason == "error"
    assert 3 <= len(bad.token_ids) <= 4
    assert [first.token_ids, last.token_ids] == [calm[0], calm[2]]
    assert [c.token_ids for c in llm.generate(prompts, free)] == calm


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (grammar("grammar", "root ::= "), "Expect element"),
        (grammar("grammar", "root ::= root"), "nothing fits"),
        (grammar("grammar", 'root ::= "a'), ""),
        (grammar("regex", "[a-"), "Unclosed"),
        (grammar("regex", "(?=a)b"), "lookahead"),
        (grammar("regex", "((a{1,100}){1,100}){1,100}"), "repetitions"),
        (
            grammar("json_schema", {"type": "object", "properties": {"a": {"not": {}}}}),
            "#/properties/a: the keyword 'not'",
        ),
        (grammar("structural_tag", {"type": "structural_tag", "format": {"type": "nope"}}), ""),
    ],
)
def test_a_bad_grammar_is_refused_and_hurts_nobody(llm, wanted, problem):
    with pytest.raises(ValueError, match=f"structured_outputs: .*{re.escape(problem)}"):
        llm.generate("the", sampling(wanted, 1))
    assert outputs(llm, grammar("choice", ["yes"]))[0].text == "yes"


def test_a_vocabulary_with_byte_fallback(tmp_path):
    tokenizer = byte_fallback()
    folder = write_tiny_llama(write_folder(tmp_path, tokenizer), vocab_size=tokenizer.get_vocab_size() + 5)
    with open_llm(folder, 1) as llm:
        for got in outputs(llm, grammar("choice", ["ab", "é"])):
            assert got.text in ("ab", "é")


def test_a_vocabulary_that_cannot_spell_every_text(tmp_path):
    tokenizer = metaspace()
    folder = write_tiny_llama(write_folder(tmp_path, tokenizer), vocab_size=tokenizer.get_vocab_size() + 5)
    with open_llm(folder, 1) as llm:
        with pytest.raises(ValueError, match="not available: this tokenizer"):
            outputs(llm, grammar("choice", ["ab"]))
        assert llm.generate("the", sampling(None, 1))[0].token_ids


def test_a_grammar_is_compiled_once(llm):
    counters = llm._core.structured.compiler.counters
    before = counters.compiled
    outputs(llm, grammar("regex", "once{1,3}"))
    assert counters.compiled == before + 1


def test_json_object(llm):
    for got in outputs(llm, grammar("json_object"), max_tokens=300):
        if got.finish_reason == "stop":
            assert isinstance(json.loads(got.text), dict)


def test_schema_from_pydantic(llm):
    schema = {
        "$defs": {"Kind": {"enum": ['a"b', "é/", "\u2028"], "type": "string"}},
        "type": "object",
        "title": "T",
        "properties": {
            "kind": {"$ref": "#/$defs/Kind", "description": "x"},
            "n": {
                "anyOf": [{"type": "integer", "minimum": 0, "maximum": 20}, {"type": "null"}],
                "default": None,
            },
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
        },
        "required": ["kind", "n", "tags"],
    }
    for got in outputs(llm, grammar("json_schema", schema), max_tokens=400):
        assert got.finish_reason == "stop", got.text
        jsonschema.validate(json.loads(got.text), schema)
