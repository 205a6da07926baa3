"""What requests want of their logits before temperature, in one pass over each row.

    x = logit + bias                     -inf in the bias bans a token
    x = -inf                             where the row has a mask whose bit is 0
    x = x / r if x > 0 else x * r        of tokens in prompt or output; r: repetition penalty
    x = x - f * count - p * (count > 0)  count: how often the token has come out

Each row of the step belongs to a row of buffers that live on the device from step to step, ``rows_S``, and
has flags: 1 where its bias counts, 2 where its history does. A row without either, and without a mask, is
copied. A history is one word a token: the count, and ``IN_PROMPT`` if the prompt has it. A mask is packed,
token t in bit t % 32 of word t // 32.

Shapes: S rows of the step, R rows of the buffers, V vocabulary, M masks, W = ceil(V / 32).  logits_SV;
rows_S, flags_S (int32); history_RV (int32), bias_RV (float32); repetition_S, frequency_S, presence_S
(float32); mask_S (int32: the row of bits_MW, -1 for none), bits_MW (int32); out_SV (float32).
"""

import torch
import triton
import triton.language as tl

from sheaf_kernels.checks import FLOATS, Checker

IN_PROMPT = 1 << 30  # a bit above every count
BIASED, PENALISED = 1, 2
BLOCK_V = 1024  # tokens of a program
_COUNT = tl.constexpr(IN_PROMPT - 1)


def adjust_reference(
    logits_SV: torch.Tensor,
    rows_S: torch.Tensor,
    flags_S: torch.Tensor,
    history_RV: torch.Tensor,
    bias_RV: torch.Tensor,
    repetition_S: torch.Tensor,
    frequency_S: torch.Tensor,
    presence_S: torch.Tensor,
    mask_S: torch.Tensor,
    bits_MW: torch.Tensor,
) -> torch.Tensor:
    """out_SV."""
    out_SV = logits_SV.float().clone()
    for s, x in enumerate(out_SV):
        row = int(rows_S[s])
        if int(flags_S[s]) & BIASED:
            x += bias_RV[row]
        if (mask := int(mask_S[s])) >= 0:
            v = torch.arange(len(x), device=x.device)
            x[(bits_MW[mask][v // 32] >> (v % 32)) & 1 == 0] = -torch.inf
        if int(flags_S[s]) & PENALISED:
            history = history_RV[row]
            count = history & (IN_PROMPT - 1)
            penalised = torch.where(x > 0, x / repetition_S[s], x * repetition_S[s])
            x.copy_(torch.where(history != 0, penalised, x))
            x -= frequency_S[s] * count + presence_S[s] * (count > 0)
    return out_SV


@triton.jit
def adjust_kernel(
    logits_ptr, rows_ptr, flags_ptr, history_ptr, bias_ptr, repetition_ptr, frequency_ptr, presence_ptr,
    mask_ptr, bits_ptr, out_ptr, logits_stride, bits_stride,
    V: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One block of one row per program."""
    row = tl.program_id(1).to(tl.int64)
    v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    valid = v < V
    x = tl.load(logits_ptr + row * logits_stride + v, mask=valid, other=0.0).to(tl.float32)
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
    tl.store(out_ptr + row * V + v, x, mask=valid)


def adjust(
    logits_SV: torch.Tensor,
    rows_S: torch.Tensor,
    flags_S: torch.Tensor,
    history_RV: torch.Tensor,
    bias_RV: torch.Tensor,
    repetition_S: torch.Tensor,
    frequency_S: torch.Tensor,
    presence_S: torch.Tensor,
    mask_S: torch.Tensor,
    bits_MW: torch.Tensor,
) -> torch.Tensor:
    """out_SV, as ``adjust_reference`` gives it. Raises TypeError or ValueError naming the argument."""
    check = Checker("adjust")
    check.tensor("logits", logits_SV, "S V", FLOATS)
    for name, ids in (("rows", rows_S), ("flags", flags_S), ("mask", mask_S)):
        check.tensor(name, ids, "S", [torch.int32])
    check.tensor("history", history_RV, "R V", [torch.int32], contiguous=True)
    check.tensor("bias", bias_RV, "R V", [torch.float32], contiguous=True)
    penalties = (("repetition", repetition_S), ("frequency", frequency_S), ("presence", presence_S))
    for name, values in penalties:
        check.tensor(name, values, "S", [torch.float32])
    check.tensor("bits", bits_MW, f"M {-(-check['V'] // 32)}", [torch.int32])
    out_SV = torch.empty(logits_SV.shape, dtype=torch.float32, device=logits_SV.device)
    if check["S"] == 0:
        return out_SV
    adjust_kernel[(triton.cdiv(check["V"], BLOCK_V), check["S"])](
        logits_SV, rows_S, flags_S, history_RV, bias_RV, repetition_S, frequency_S, presence_S,
        mask_S, bits_MW, out_SV, logits_SV.stride(0), bits_MW.stride(0),
        V=check["V"], BLOCK_V=BLOCK_V, num_warps=4,
    )  # fmt: skip
    return out_SV
