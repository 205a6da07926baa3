"""Routing and the grouped product against their references."""

import pytest
import torch
from sheaf_kernels.experts import grouped_linear, sort_pairs, tile_rows
from sheaf_kernels.parity import ExpertsCase, check_experts

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CASES = [
    ExpertsCase(),
    ExpertsCase(bias=True, scale="in"),
    ExpertsCase(by_token=False, in_order=True, bias=True, scale="out"),
    ExpertsCase(tokens=1, top_k=1, experts=1),
    # Two tiles of one expert beside one; a number of experts that is no power of two (TileGym#24).
    ExpertsCase(tokens=40, top_k=3, experts=7, channels=33, out=70, favourite=True),
    ExpertsCase(tokens=1, top_k=6, experts=60, in_order=True),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=[str(i) for i in range(len(CASES))])
def test_experts_match_the_reference(case: ExpertsCase, dtype: torch.dtype) -> None:
    check_experts(case, dtype, "cpu")


def test_pairs_of_several_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sheaf_kernels.experts.BLOCK_P", 16)
    check_experts(ExpertsCase(tokens=23, top_k=3), torch.float32, "cpu")


def test_nobody_chose_an_expert_whose_weight_is_not_a_number() -> None:
    """NaN in an expert without a token, or in rows beside a tile's end, must not reach a result."""
    weight = torch.full((3, 8, 16), torch.nan)
    weight[1] = 1.0
    x = torch.ones(2, 16)
    groups = sort_pairs(torch.tensor([[1], [1]]), 3)
    assert groups.first_E1.tolist() == [0, 0, 2, 2]
    assert grouped_linear(x, weight, None, groups, by_token=True, in_order=True).eq(16).all()


def test_no_tokens() -> None:
    groups = sort_pairs(torch.empty(0, 2, dtype=torch.int64), 3)
    assert groups.first_E1.tolist() == [0, 0, 0, 0]
    y = grouped_linear(torch.ones(0, 16), torch.ones(3, 8, 16), None, groups, by_token=True, in_order=True)
    assert y.shape == (0, 8)


def test_the_grid_holds_every_distribution() -> None:
    """All pairs at one expert, one at each, and all that lies between."""
    for pairs, experts in ((1, 1), (16, 128), (300, 7), (4096, 128)):
        rows = tile_rows(pairs, experts)
        launched = pairs // rows + min(experts, pairs)
        for crowded in range(0, pairs + 1, max(pairs // 7, 1)):
            rest = pairs - crowded
            counts = [crowded, *(rest // experts + (i < rest % experts) for i in range(experts - 1))]
            assert sum(-(-count // rows) for count in counts) <= launched


def test_wrong_arguments_are_named() -> None:
    groups = sort_pairs(torch.tensor([[1], [0]]), 2)
    x, weight = torch.ones(2, 16), torch.ones(2, 8, 16)
    with pytest.raises(TypeError, match="sort_pairs: chosen must be int64, got int32"):
        sort_pairs(torch.zeros(2, 1, dtype=torch.int32), 2)
    with pytest.raises(ValueError, match=r"grouped_linear: weight must have shape \[E, N, C\] with C=16"):
        grouped_linear(x, weight[..., :8], None, groups, by_token=True, in_order=True)
    one = torch.ones(2)
    both = {"scale_in_P": one, "scale_out_P": one}
    with pytest.raises(ValueError, match="a scale belongs to the input or the result"):
        grouped_linear(x, weight, None, groups, by_token=True, in_order=True, **both)
