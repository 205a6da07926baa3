"""``LLM``: the engine in process, on a real (tiny, random) model."""

from __future__ import annotations

import pytest
from model_folders import byte_level, write_folder
from sheaf_runtime import LLM, SamplingParams
from tiny_llama import write_tiny_llama

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
PROMPTS = ["the", "one two three four five", "a much longer prompt, so that it takes more than one chunk"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = byte_level()
    folder = write_folder(tmp_path_factory.mktemp("llm"), tokenizer)
    return write_tiny_llama(folder, vocab_size=tokenizer.get_vocab_size())


@pytest.fixture(scope="module", params=[0, 1], ids=["depth0", "depth1"])
def llm(folder, request):
    with LLM(
        folder,
        kv_cache_memory=1 << 22,
        block_size=4,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        pipeline_depth=request.param,
    ) as llm:
        yield llm


def test_together_equals_alone(llm):
    together = llm.generate(PROMPTS * 3, GREEDY)
    alone = [llm.generate(p, GREEDY)[0] for p in PROMPTS]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone] * 3
    assert [c.prompt for c in together] == PROMPTS * 3
    assert all(len(c.token_ids) == 24 and c.finish_reason == "length" for c in together)
    assert alone[2].cached_tokens > 0


def test_token_ids_as_prompt_and_parameters_for_each(llm):
    ids = [llm.tokenizer.encode(p) for p in PROMPTS]
    params = [SamplingParams(temperature=0.0, max_tokens=n, ignore_eos=True) for n in (1, 2, 3)]
    got = llm.generate(ids, params)
    assert [len(c.token_ids) for c in got] == [1, 2, 3]
    assert [c.prompt for c in got] == [None] * 3
    with pytest.raises(ValueError, match="3 prompts, but 2 sampling"):
        llm.generate(ids, params[:2])
    (one,) = llm.generate(ids[0], params[2])
    assert one.token_ids[:1] == got[0].token_ids
    assert llm.generate([], params[0]) == []
    with pytest.raises(ValueError, match="texts or lists of token ids"):
        llm.generate([ids[0], 5], params[0])


def test_the_text_is_the_decoded_tokens(llm):
    (got,) = llm.generate(PROMPTS[1], GREEDY)
    assert got.text == llm.tokenizer.decode(got.token_ids)


def test_a_stop_id_ends_and_is_not_text(llm):
    (free,) = llm.generate(PROMPTS[0], GREEDY)
    stop_id = free.token_ids[7]
    expected = free.token_ids[: free.token_ids.index(stop_id) + 1]
    params = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True, stop_token_ids=(stop_id,))
    (got,) = llm.generate(PROMPTS[0], params)
    assert (got.token_ids, got.finish_reason, got.stop_reason) == (expected, "stop", stop_id)
    assert got.text == llm.tokenizer.decode(expected[:-1])


def test_a_stop_string_ends_the_request(llm):
    (free,) = llm.generate(PROMPTS[1], GREEDY)
    stop = free.text[5:8]
    (got,) = llm.generate(PROMPTS[1], GREEDY, stop=stop)
    assert got.text == free.text[: free.text.index(stop)]
    assert (got.finish_reason, got.stop_reason) == ("stop", stop)
    assert got.token_ids == free.token_ids[: len(got.token_ids)]
    assert len(got.token_ids) < len(free.token_ids)


def test_nothing_runs_when_one_prompt_is_refused(llm):
    steps = llm.stats().steps
    with pytest.raises(ValueError, match="prompt 1: The prompt is empty"):
        llm.generate([[1, 2], []], GREEDY)
    assert llm.stats().steps == steps
    assert llm.stats().blocks_live == 0


@pytest.mark.parametrize("depth", [0, 1])
def test_a_pool_that_forces_preemption_gives_the_same_tokens(folder, depth):
    options = {"block_size": 4, "max_num_seqs": 6, "max_num_batched_tokens": 16, "pipeline_depth": depth}
    params = [
        SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True),
        SamplingParams(temperature=1.0, seed=7, max_tokens=40, ignore_eos=True),
    ] * 3
    prompts = [[i, i + 1, i + 2] for i in range(6)]
    with LLM(folder, kv_cache_memory=1 << 22, **options) as large:
        expected = large.generate(prompts, params)
        assert large.stats().preemptions == 0
    with LLM(folder, num_gpu_blocks_override=1 + 24, **options) as small:
        got = small.generate(prompts, params)
        assert small.stats().preemptions > 0
    assert [c.token_ids for c in got] == [c.token_ids for c in expected]


def test_a_prompt_longer_than_the_pool_is_refused(folder):
    with LLM(folder, num_gpu_blocks_override=1 + 4, block_size=4) as small:
        with pytest.raises(ValueError, match="the whole cache holds 16"):
            small.generate([[1] * 20], SamplingParams(max_tokens=4))
        assert (
            len(small.generate([[1] * 12], SamplingParams(max_tokens=5, ignore_eos=True))[0].token_ids) == 5
        )
