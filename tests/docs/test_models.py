"""docs/models.md says what the tables in the code say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from doc_blocks import ROOT
from sheaf_runtime.config import ModelImpl
from sheaf_runtime.gguf.config import FAMILIES
from sheaf_runtime.gguf.reader import BLOCKS
from sheaf_runtime.gguf.tokenizer import _PRE
from sheaf_runtime.models.architectures import ARCHITECTURES, Architecture
from sheaf_runtime.models.parse import ACTIVATIONS
from sheaf_runtime.models.rope import ROPE_KINDS

PAGE = (ROOT / "docs" / "models.md").read_text()
NORMS = {
    "rms": "RMSNorm",
    "rms_wide": "RMSNorm in float32",
    "rms_offset": "RMSNorm in float32, one added",
    "layer": "LayerNorm",
}


def parts(row: Architecture) -> Iterator[str]:
    """What of a family differs from a plain decoder, in words."""
    names = row.names
    yield NORMS[row.norm]
    if row.parallel:
        yield "attention beside the MLP"
    elif names.input_norm is None:
        yield "norms after attention and MLP"
    elif names.attention_out_norm is not None:
        yield "norms before and after attention and MLP"
    if row.qk_norm is not None:
        yield "queries and keys normalised" + (" across heads" if row.qk_norm == "all" else "")
    if row.windows != "none":
        yield "chunks" if row.windows == "chunks" else "windows"
    if row.sinks:
        yield "sinks"
    if "attn_logit_softcapping" in row.defaults:
        yield "soft caps"
    if row.interleaved:
        yield "neighbouring channels rotated"
    if "partial_rotary_factor" in row.defaults:
        yield "a part of each head rotated"
    if row.no_rope != "none":
        yield "layers without positions"
    if not row.gated:
        yield "plain MLP"
    if row.experts is not None:
        yield "experts and one that all share" if row.shared_expert else "experts"
    if {"embedding_multiplier", "logit_scale"} & row.defaults.keys():
        yield "scalings"


def section(title: str) -> str:
    (found,) = [part for part in PAGE.split("\n## ") if part.startswith(title)]
    return found


def test_there_is_a_row_for_each_architecture() -> None:
    written = [line for line in section("Native").splitlines() if "ForCausalLM`" in line and line[0] == "|"]
    assert written == [
        f"| {row.family} | `{name}` | {', '.join(parts(row))} |" for name, row in ARCHITECTURES.items()
    ], "write the rows as they are on the right"


def test_what_is_listed_is_what_there_is() -> None:
    listed = {
        "Native": [*ROPE_KINDS, *ACTIVATIONS],
        "Any other": get_args(ModelImpl),
        "GGUF": [*BLOCKS, *FAMILIES, *_PRE],
    }
    for title, names in listed.items():
        for name in names:
            assert f"`{name}`" in section(title), f"{name} is missing under {title}"
