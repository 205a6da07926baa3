"""The kernel of penalties, biases and masks against its reference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sampler_rows import SamplerRows, packed
from sheaf_kernels import adjust as kernel
from sheaf_kernels.checks import Checker
from sheaf_kernels.parity import adjust_inputs, check_adjust
from sheaf_kernels.sample import likeliest, survey
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.worker import adjust as torch_path
from sheaf_runtime.worker.masks import TokenMasks
from sheaf_runtime.worker.triton_backend import wishes_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab", [31, 64, 1111])
def test_adjust_matches_the_reference(dtype: torch.dtype, vocab: int) -> None:
    check_adjust(16, vocab, dtype, "cpu")


def test_wrong_arguments_are_named() -> None:
    logits, wishes = adjust_inputs(3, 40, torch.float32, "cpu")
    with pytest.raises(TypeError, match="likeliest: rows must be int32, got int64"):
        likeliest(logits, replace(wishes, rows_S=wishes.rows_S.long()))
    with pytest.raises(ValueError, match=r"likeliest: bits must have shape \[M, 2\]"):
        likeliest(logits, replace(wishes, bits_MW=wishes.bits_MW[:, :1]))
    assert likeliest(logits[:0], wishes).shape == (0,)


def test_the_backends_adjust_alike() -> None:
    """What plain torch makes of it is held to transformers."""
    assert kernel.IN_PROMPT == torch_path.IN_PROMPT
    wishes = [
        SamplingParams(),
        SamplingParams(repetition_penalty=1.7, frequency_penalty=0.5, presence_penalty=-1.0),
        SamplingParams(logit_bias={5: 3.5, 74: -2.0}, min_tokens=6, stop_token_ids=(11,)),
        SamplingParams(bad_words=((4, 5), (7,), (9, 4, 5)), repetition_penalty=0.7),
        SamplingParams(allowed_token_ids=(1, 2, 40, 74), presence_penalty=0.5),
    ]
    rows = SamplerRows(vocab=75)
    for size, wish in enumerate(wishes, 1):
        rows.enter(list(range(3, 3 + size)), size, wish)
    allowed = np.random.default_rng(0).random((2, 75)) < 0.5
    masks = TokenMasks([rows.held[0].row, rows.held[3].row], packed(allowed))
    for step, given in enumerate((None, masks, None, masks)):
        logits = torch.randn(len(wishes), 75, generator=torch.Generator().manual_seed(step))
        want = torch_path.adjust(logits.clone(), rows.adjustments(given))
        wanted, own = rows.adjustments(given), logits.clone()
        check = Checker("adjust")
        check.tensor("logits", own, "S V", [torch.float32])
        got = survey(check, own, None, wishes_of(own, wanted, torch.from_numpy)).logits_SV
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)
        rows.take([4, 4, 9, 4, 40])
