"""What went wrong elsewhere when tokens were proposed, each as a small input. Issues are named by project and
number."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from drafted_llm import NGRAM, foreseen, opened, told, with_drafts
from model_folders import byte_level, write_folder
from msgspec.structs import replace
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.config import LoraModule
from sheaf_runtime.engine.cost_model import CostModel
from sheaf_runtime.engine.drafting import Drafting
from sheaf_runtime.engine.llm import Completion
from sheaf_runtime.engine.ngram import NgramProposer
from sheaf_runtime.grammar.matcher import Matcher
from sheaf_runtime.parsers.reasoning import Marks
from sheaf_runtime.parsers.shapes import thoughts
from sheaf_runtime.protocol.grammar import Grammar
from sheaf_runtime.protocol.messages import Accepted, AddRequest
from sheaf_runtime.worker.masks import packed_width
from tiny_adapters import write_adapter
from tiny_families import write_tiny

PROMPT = [40 + i % 7 for i in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_level()
    folder = write_folder(tmp_path_factory.mktemp("speculation"), tokenizer)
    vocab_size = tokenizer.get_vocab_size() + 37
    return write_tiny(folder, "llama", head_dim=16, num_hidden_layers=2, vocab_size=vocab_size)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    with opened(folder) as llm:
        yield llm


@pytest.fixture(scope="module")
def drafting(folder: Path) -> Any:
    with opened(folder, speculative_config=NGRAM) as llm:
        yield llm


def both(plain: LLM, drafting: LLM, params: SamplingParams, wrong: float = 0.0, **options: Any) -> Completion:
    """The answer, with drafts as without. Drafts are those of the answer as it would go on."""
    longer = replace(params, max_tokens=params.max_tokens + 20, stop_token_ids=(), ignore_eos=True)
    goes_on = plain.generate([PROMPT], [longer])
    expected = plain.generate([PROMPT], [params], **options)
    before = drafting._core.scheduler.counters.draft_tokens
    made = with_drafts(drafting, [PROMPT], goes_on, [params], wrong, **options)
    assert told(made) == told(expected)
    assert len(made[0].token_ids) < 5 or drafting._core.scheduler.counters.draft_tokens > before
    return made[0]


@pytest.mark.parametrize("place", [2, 3, 4, 5, 6])
def test_an_end_within_accepted_tokens_ends_the_answer(plain, drafting, place):
    """transformers #47912: what follows an end that was accepted in the middle came out too."""
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=30, ignore_eos=True)
    (free,) = plain.generate([PROMPT], [params])
    end = free.token_ids[place]
    answer = both(plain, drafting, replace(params, stop_token_ids=(end,)))
    assert answer.token_ids == free.token_ids[: free.token_ids.index(end) + 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", end)


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8])
def test_never_more_than_asked_for(plain, drafting, most):
    """transformers #46993: prompt lookup went past max_new_tokens."""
    answer = both(plain, drafting, SamplingParams(temperature=0.0, max_tokens=most, ignore_eos=True))
    assert len(answer.token_ids) == most
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("room", [1, 2, 5, 9])
def test_never_past_the_longest_context(plain, drafting, room):
    """vLLM #42533: drafts went past max_model_len."""
    prompt = [3 + i % 50 for i in range(256 - room)]
    params = SamplingParams(temperature=0.0, max_tokens=room, ignore_eos=True)
    expected = plain.generate([prompt], [params])
    assert told(with_drafts(drafting, [prompt], expected, [params], 0.0)) == told(expected)


def test_end_tokens_may_be_none_at_all(plain, drafting):
    """transformers #46790: a crash where no end token was configured."""
    both(plain, drafting, SamplingParams(temperature=1.0, seed=1, max_tokens=30, ignore_eos=True))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_stop_string_across_accepted_tokens(plain, drafting, size):
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=30, ignore_eos=True)
    (free,) = plain.generate([PROMPT], [params])
    stop = free.text[8 : 8 + size]
    answer = both(plain, drafting, params, stop=stop)
    assert answer.text == free.text[: free.text.index(stop)]
    assert answer.stop_reason == stop


def test_a_log_probability_for_each_token(plain, drafting):
    params = SamplingParams(temperature=1.0, seed=2, max_tokens=25, logprobs=2, ignore_eos=True)
    answer = both(plain, drafting, params, wrong=0.2)
    assert [one.token_id for one in answer.logprobs] == answer.token_ids


def test_nothing_is_known_of_the_request_before():
    """llama.cpp #27852: what one request had said was proposed to the next."""
    before = Drafting(NgramProposer(2, 3))
    before.proposer.follow([1, 2, 3, 4, 1, 2])
    assert before.proposer.propose([1, 2, 3, 4, 1, 2], 2) == [3, 4]
    after = Drafting(NgramProposer(2, 3))
    after.proposer.follow([1, 2])
    assert after.proposer.propose([1, 2], 2) == []


# --- with a grammar ---------------------------------------------------------------------------------------


def grammar(kind: Any, text: Any) -> Grammar:
    text = text if isinstance(text, str) else json.dumps(text)
    return Grammar(kind=kind, text=text, param="structured_outputs")


BEFORE = json.dumps(thoughts(Marks(ends=tuple("abcdefghijklm")), opened=True, blanks=False))
GRAMMARS = {
    "short": grammar("regex", "[ab]{3}"),
    "long": grammar("regex", "[ab ]{30,40}"),
    "json": grammar("json_schema", {"type": "object", "properties": {"a": {"enum": ["x", "yy"]}}}),
    "calls": grammar("regex", "(<<f=[ab]{2}>>){4}"),  # vLLM #40875
    # vLLM #34241: what was proposed behind the end of thoughts was not held to the grammar.
    "thoughts": replace(grammar("regex", "[ab ]{20,30}"), before=BEFORE),
}


@pytest.mark.parametrize("wrong", [0.0, 0.3])
@pytest.mark.parametrize("name", GRAMMARS)
def test_a_grammar_is_held_at_each_token(plain, drafting, name, wrong, caplog):
    """openvino.genai #4081: a matcher was asked on behind its end; vLLM #53777: drafts that a grammar does
    not take were errors."""
    params = [
        SamplingParams(
            temperature=1.2, seed=seed, max_tokens=60, grammar=GRAMMARS[name], min_tokens=5 * (seed % 2)
        )
        for seed in range(4)
    ]
    prompts = [PROMPT] * len(params)
    expected = plain.generate(prompts, params)
    accepted = sum(drafting._core.scheduler.counters.accepted_at)
    with caplog.at_level(logging.WARNING):
        assert told(with_drafts(drafting, prompts, expected, params, wrong)) == told(expected)
    assert not caplog.records
    if name in ("long", "calls"):
        assert sum(drafting._core.scheduler.counters.accepted_at) > accepted + 10


def allowed(row_W: npt.NDArray[np.int32]) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(row_W.view(np.uint8), bitorder="little")).tolist())


def test_the_matcher_comes_back_from_its_look_ahead(plain):
    compiled = plain._core.structured.compiler.compile(grammar("regex", "ab[cd]")).result(timeout=60)
    matcher = Matcher(compiled, end_ids=[0], stop_ids=[0])
    a, b, c, d = (plain.tokenizer.encode(letter)[-1] for letter in "abcd")
    bits = np.empty((5, packed_width(plain._executor.info.vocab_size)), np.int32)
    for _ in range(2):
        matcher.fill_along(bits, [a, b, a, c], may_stop=True)
        assert a in allowed(bits[0])
        assert c not in allowed(bits[0])
        assert {c, d} == allowed(bits[2])
        assert (bits[3:] == -1).all(), "what comes behind a draft that cannot come does not count"
        matcher.fill_along(bits, [a, b, c, 0], may_stop=True)
        assert allowed(bits[3]) == {0}
        assert allowed(bits[4]) == {0}, "behind the end only ends come"
    matcher.accept([a, b])
    matcher.fill_along(bits[:1], [], may_stop=True)
    assert allowed(bits[0]) == {c, d}


# --- adapters -----------------------------------------------------------------------------------------------


def test_adapters_beside_the_model(folder, tmp_path):
    """vLLM #20284: a crash with n-gram proposals and LoRA."""
    adapter = LoraModule(name="a", path=str(write_adapter(tmp_path / "a", folder)))
    options: dict[str, Any] = {"enable_lora": True, "lora_modules": (adapter,)}
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)

    def answers(llm: LLM) -> list[list[int]]:
        got: list[list[int]] = [[], [], []]
        for i, own in enumerate((1, None, 1)):
            message = AddRequest(
                request_id=str(i), prompt_token_ids=PROMPT, sampling=params, arrival_time=0.0, adapter=own
            )
            assert isinstance(llm._core.add(b"", message), Accepted)
        while llm._core.busy:
            for output in llm._core.step():
                got[int(output.request.request_id)] += output.token_ids
        return got

    with opened(folder, **options) as llm:
        expected = answers(llm)
    assert expected[0] == expected[2] != expected[1]
    with opened(folder, speculative_config=NGRAM, **options) as llm, pytest.MonkeyPatch.context() as patch:
        foreseen(llm, [PROMPT + answer for answer in expected], 0.2)
        patch.setattr(CostModel, "observe", lambda *_: None)
        assert answers(llm) == expected
        assert sum(llm._core.scheduler.counters.accepted_at) > 20
