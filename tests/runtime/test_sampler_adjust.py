"""Penalties, biases and masks against transformers' logits processors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sampler_rows import Held, SamplerRows, packed
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker.adjust import adjust
from sheaf_runtime.worker.masks import TokenMasks
from sheaf_runtime.worker.plan import NewRequest
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

VOCAB, EOS = 75, 2
WISHES = [
    SamplingParams(),
    SamplingParams(repetition_penalty=1.7),
    SamplingParams(repetition_penalty=0.6),
    SamplingParams(frequency_penalty=0.75, presence_penalty=-0.5),
    SamplingParams(presence_penalty=1.25, repetition_penalty=1.3, frequency_penalty=-0.25),
    SamplingParams(logit_bias={5: 3.5, 74: -2.0, 0: 100.0}),
    SamplingParams(bad_words=((4, 5), (7,), (9, 4, 5), (3, 9))),
    SamplingParams(min_tokens=6, stop_token_ids=(11, 12)),
    SamplingParams(min_tokens=2, stop_token_ids=(11,)),
    SamplingParams(min_tokens=6, ignore_eos=True, stop_token_ids=(11,)),
    SamplingParams(allowed_token_ids=(1, 2, 40, 74), logit_bias={1: 2.0, 3: 50.0}, presence_penalty=0.5),
    SamplingParams(logit_bias={5: 1.0}, bad_words=((4, 5), (8,)), min_tokens=6, repetition_penalty=1.2),
]


def expected(logits_V: torch.Tensor, held: Held) -> torch.Tensor:
    """By transformers, and the two penalties of OpenAI's by their definition."""
    s = held.sampling
    ids = torch.tensor([held.tokens])
    scores = logits_V[None].clone()
    if s.allowed_token_ids is not None:
        allowed = torch.isin(torch.arange(VOCAB), torch.tensor(s.allowed_token_ids))
        scores = scores.masked_fill(~allowed, -torch.inf)
    if s.logit_bias:
        scores = SequenceBiasLogitsProcessor([[[id_], bias] for id_, bias in s.logit_bias.items()])(
            ids, scores
        )
    if s.bad_words:
        output = ids[:, held.num_prompt :]
        scores = NoBadWordsLogitsProcessor([list(word) for word in s.bad_words])(output, scores)
    if s.repetition_penalty != 1:
        scores = RepetitionPenaltyLogitsProcessor(s.repetition_penalty)(ids, scores)
    counts = torch.bincount(ids[0, held.num_prompt :], minlength=VOCAB)
    scores = scores - s.frequency_penalty * counts - s.presence_penalty * (counts > 0)
    ends = [*s.stop_token_ids, *([] if s.ignore_eos else [EOS])]
    return MinNewTokensLengthLogitsProcessor(held.num_prompt, s.min_tokens, ends)(ids, scores)[0]


def requests(*, output: int = 0) -> SamplerRows:
    rows = SamplerRows(vocab=VOCAB, eos=(EOS,))
    random = np.random.default_rng(0)
    for wish in WISHES:
        size = int(random.integers(1, 9))
        rows.enter(random.integers(0, VOCAB, size + output).tolist(), size, wish)
    return rows


@pytest.mark.parametrize("output", [0, 5], ids=["new", "resumed"])
def test_each_step_is_what_transformers_makes_of_it(output: int) -> None:
    rows = requests(output=output)
    generator = torch.Generator().manual_seed(1)
    for step in range(10):
        logits = torch.randn(len(WISHES), VOCAB, generator=generator) * 3
        got = adjust(logits.clone(), rows.adjustments())
        for s, held in enumerate(rows.held):
            torch.testing.assert_close(got[s], expected(logits[s], held), rtol=1e-6, atol=1e-5)
        # Such that words begin, tokens repeat, and some come from the prompt.
        rows.take([(4, 9, held.tokens[0], 4)[(step + s) % 4] for s, held in enumerate(rows.held)])


def test_the_cut_of_the_batch_changes_nothing() -> None:
    rows = requests(output=3)
    logits = torch.randn(len(WISHES), VOCAB, generator=torch.Generator().manual_seed(2))
    together = adjust(logits.clone(), rows.adjustments())
    everybody = rows.held
    for s, held in enumerate(everybody):
        rows.held = [held]
        assert adjust(logits[s : s + 1].clone(), rows.adjustments()).equal(together[s : s + 1])


def test_who_wants_nothing_is_not_touched() -> None:
    rows = SamplerRows(vocab=VOCAB)
    for _ in range(3):
        rows.enter([4, 4, 4], 1, SamplingParams())
    logits = torch.randn(3, VOCAB).to(torch.bfloat16)
    assert adjust(logits, rows.adjustments()) is logits
    rows.enter([4, 4, 4], 1, SamplingParams(presence_penalty=1))
    logits = torch.randn(4, VOCAB).to(torch.bfloat16)
    assert adjust(logits.clone(), rows.adjustments())[:3].equal(logits[:3].float())


@pytest.mark.parametrize("vocab", [64, 75, 31])
def test_masks_leave_what_they_allow(vocab: int) -> None:
    rows = SamplerRows(vocab=vocab)
    for _ in range(4):
        rows.enter([4, 5, 6], 1, SamplingParams(logit_bias={3: 1.0}))
    random = np.random.default_rng(vocab)
    allowed = random.random((3, vocab)) < 0.3
    asked = [rows.held[2].row, 99, rows.held[0].row]  # of one that gets no token, too
    logits = torch.randn(4, vocab)
    got = adjust(logits.clone(), rows.adjustments(TokenMasks(asked, packed(allowed))))
    plain = adjust(logits.clone(), rows.adjustments())
    assert got[[1, 3]].equal(plain[[1, 3]])
    for s, m in ((2, 0), (0, 2)):
        assert got[s].equal(plain[s].masked_fill(~torch.from_numpy(allowed[m]), -torch.inf))
    allowed, order = random.random((4, vocab)) < 0.3, (3, 0, 2, 1)
    everybody = TokenMasks([rows.held[s].row for s in order], packed(allowed))
    got = adjust(logits.clone(), rows.adjustments(everybody))
    for m, s in enumerate(order):
        assert got[s].equal(plain[s].masked_fill(~torch.from_numpy(allowed[m]), -torch.inf))


def test_a_mask_of_another_vocabulary_is_refused() -> None:
    rows = SamplerRows(vocab=75)
    held = rows.enter([4], 1, SamplingParams())
    rows.adjustments(TokenMasks([99], np.zeros((1, 2), np.int32)))
    with pytest.raises(ValueError, match="a token mask has 2 words, the vocabulary needs 3"):
        rows.adjustments(TokenMasks([held.row], np.zeros((1, 2), np.int32)))


def test_a_row_is_given_on_without_a_trace() -> None:
    rows = SamplerRows(vocab=VOCAB)
    wish = SamplingParams(
        logit_bias={5: 9.0}, bad_words=((4, 5),), min_tokens=9, repetition_penalty=2.0, presence_penalty=1.0
    )
    held = rows.enter([4, 4, 4], 1, wish)
    rows.state.leave(held.row)
    logits = torch.randn(1, VOCAB)
    assert adjust(logits.clone(), rows.adjustments()).equal(logits)
    rows.held.clear()
    rows.enter([7, 8], 1, SamplingParams(presence_penalty=1.0))
    want = logits.clone()
    want[0, 8] -= 1.0
    assert adjust(logits.clone(), rows.adjustments()).equal(want)


def test_a_row_is_free_of_what_its_last_request_wanted() -> None:
    """vllm#43894: a recycled row kept the mask of allowed tokens, so a plain request got a foreign one."""
    rows = SamplerRows(vocab=8)
    wants = SamplingParams(
        temperature=1.0, seed=0, allowed_token_ids=(3,), presence_penalty=1.0, bad_words=((4, 5),)
    )
    held = rows.enter([1], 1, wants)
    row = np.array([held.row])
    assert not rows.adjustments().none
    assert rows.state.parameters(row, np.array([1])) is not None
    rows.state.leave(held.row)
    assert rows.adjustments().none
    assert rows.state.parameters(row, np.array([1])) is None
    plain = NewRequest(
        req_id=held.row,
        epoch=0,
        token_ids=[1],
        num_prompt_tokens=1,
        num_computed_tokens=0,
        sampling=SamplingParams(temperature=0.0, seed=0),
        block_ids=[],
    )
    rows.state.enter(held.row, plain)
    logits = torch.arange(8.0)[None]
    assert adjust(logits.clone(), rows.adjustments()).equal(logits)
    # Beside one that wants something, it still wants nothing.
    rows.enter([2], 1, wants)
    both = torch.arange(8.0).repeat(2, 1)
    adjusted = adjust(both.clone(), rows.adjustments())
    assert adjusted[0].equal(both[0])
    assert adjusted[1].isfinite().tolist() == [False] * 3 + [True] + [False] * 4
