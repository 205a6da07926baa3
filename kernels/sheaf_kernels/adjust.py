"""What requests want of their logits before temperature. The pass that looks for the likeliest applies it.

    x = logit + bias                     -inf in the bias bans a token
    x = -inf                             where the row has a mask whose bit is 0
    x = x / r if x > 0 else x * r        of tokens in prompt or output; r: repetition penalty
    x = x - f * count - p * (count > 0)  count: how often the token has come out

Each row of the step belongs to a row of buffers that live on the device from step to step, ``rows_S``, and
has flags: 1 where its bias counts, 2 where its history does. A row without either, and without a mask, stays
as it is. A history is one word a token: the count, and ``IN_PROMPT`` if the prompt has it. A mask is packed,
token t in bit t % 32 of word t // 32.

Shapes: S rows of the step, R rows of the buffers, V vocabulary, M masks, W = ceil(V / 32).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from sheaf_kernels.checks import Checker

IN_PROMPT = 1 << 30  # a bit above every count
BIASED, PENALISED = 1, 2
_COUNT = tl.constexpr(IN_PROMPT - 1)


@dataclass(frozen=True)
class Wishes:
    """rows_S, flags_S (int32); history_RV (int32), bias_RV (float32); repetition_S, frequency_S, presence_S
    (float32); mask_S (int32: the row of bits_MW, -1 for none), bits_MW (int32)."""

    rows_S: torch.Tensor
    flags_S: torch.Tensor
    history_RV: torch.Tensor
    bias_RV: torch.Tensor
    repetition_S: torch.Tensor
    frequency_S: torch.Tensor
    presence_S: torch.Tensor
    mask_S: torch.Tensor
    bits_MW: torch.Tensor

    def checked(self, check: Checker) -> None:
        """Against the S and V of the logits. Raises TypeError or ValueError naming the argument."""
        for name, ids in (("rows", self.rows_S), ("flags", self.flags_S), ("mask", self.mask_S)):
            check.tensor(name, ids, "S", [torch.int32])
        check.tensor("history", self.history_RV, "R V", [torch.int32], contiguous=True)
        check.tensor("bias", self.bias_RV, "R V", [torch.float32], contiguous=True)
        for name in ("repetition", "frequency", "presence"):
            check.tensor(name, getattr(self, f"{name}_S"), "S", [torch.float32])
        check.tensor("bits", self.bits_MW, f"M {-(-check['V'] // 32)}", [torch.int32])


def adjust_reference(logits_SV: torch.Tensor, wishes: Wishes) -> torch.Tensor:
    """The adjusted logits [S, V], float32."""
    out_SV = logits_SV.float().clone()
    for s, x in enumerate(out_SV):
        row = int(wishes.rows_S[s])
        if int(wishes.flags_S[s]) & BIASED:
            x += wishes.bias_RV[row]
        if (mask := int(wishes.mask_S[s])) >= 0:
            v = torch.arange(len(x), device=x.device)
            x[(wishes.bits_MW[mask][v // 32] >> (v % 32)) & 1 == 0] = -torch.inf
        if int(wishes.flags_S[s]) & PENALISED:
            history = wishes.history_RV[row]
            count = history & (IN_PROMPT - 1)
            penalised = torch.where(x > 0, x / wishes.repetition_S[s], x * wishes.repetition_S[s])
            x.copy_(torch.where(history != 0, penalised, x))
            x -= wishes.frequency_S[s] * count + wishes.presence_S[s] * (count > 0)
    return out_SV


@triton.jit
def adjusted(
    x, v, valid, row, rows_ptr, flags_ptr, history_ptr, bias_ptr, repetition_ptr, frequency_ptr,
    presence_ptr, mask_ptr, bits_ptr, bits_stride,
    V: tl.constexpr,
):  # fmt: skip
    """The logits x (float32) of tokens v of a row, as the row wants them."""
    flags = tl.load(flags_ptr + row)
    held = tl.load(rows_ptr + row).to(tl.int64) * V
    if (flags & 1) != 0:
        x += tl.load(bias_ptr + held + v, mask=valid, other=0.0)
    mask = tl.load(mask_ptr + row).to(tl.int64)
    if mask >= 0:
        words = tl.load(bits_ptr + mask * bits_stride + v // 32, mask=valid, other=0)
        x = tl.where(((words >> (v % 32)) & 1) == 0, float("-inf"), x)
    if (flags & 2) != 0:
        history = tl.load(history_ptr + held + v, mask=valid, other=0)
        count = (history & _COUNT).to(tl.float32)
        repetition = tl.load(repetition_ptr + row)
        penalised = tl.where(x > 0, x / repetition, x * repetition)
        x = tl.where(history != 0, penalised, x)
        x -= tl.load(frequency_ptr + row) * count
        x -= tl.load(presence_ptr + row) * (count > 0).to(tl.float32)
    return x
