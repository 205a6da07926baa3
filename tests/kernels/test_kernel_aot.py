"""Kernels compile for every architecture we serve on, without a GPU, within their budgets."""

import dataclasses
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from sheaf_kernels import aot


def run_aot(*args: str) -> "subprocess.CompletedProcess[str]":
    """Compiled kernels cannot live in this process, whose kernels are interpreted."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "sheaf_kernels.aot", *args]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_the_main_shapes_compile_within_budget() -> None:
    done = run_aot("--main")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if " sm_" in line]
    assert {row[0] for row in rows} == {v.name for v in aot.all_variants()}
    main = sum(v.main for v in aot.all_variants())
    assert [sum(f"sm_{arch}" in row for row in rows) for arch in (80, 90, 100)] == [main] * 3
    assert done.stdout.endswith(f"{main} variants within budget\n")


def test_every_kernel_has_variants_and_a_budget() -> None:
    budgets = tomllib.loads(aot.BUDGETS.read_text())
    assert set(budgets) == {v.name for v in aot.all_variants()}
    variant = aot.all_variants()[0]
    assert aot.over_budget(variant, 90, aot.Usage(10, 0, 0), {}) == [
        "paged_attention_kernel has no budget in budgets.toml"
    ]


@pytest.mark.parametrize(
    ("usage", "arch", "want"),
    [
        (aot.Usage(128, 0, 100), 80, []),
        (aot.Usage(129, 0, 100), 80, ["registers 129 > 128"]),
        (aot.Usage(129, 0, 100), 90, []),
        (aot.Usage(128, 4, 101), 90, ["spills 4 > 0", "shared 101 > 100"]),
        (aot.Usage(1, 0, 1, ("products of warp groups",)), 90, ["no products of warp groups"]),
    ],
)
def test_over_budget(usage: aot.Usage, arch: int, want: list[str]) -> None:
    limits = {"registers": 168, "spills": 0, "shared": 100, "sm_80": {"registers": 128}}
    variant = dataclasses.replace(aot.all_variants()[0], budget=None)
    assert aot.over_budget(variant, arch, usage, {variant.name: limits}) == want
    variant = dataclasses.replace(variant, budget="short")
    assert aot.over_budget(variant, arch, usage, {variant.name: {"short": limits}}) == want


LISTING = """
        /*0a10*/                   LDGSTS.E.BYPASS.128 [R7], desc[UR4][R2.64] ;
        /*0a20*/              @!P0 LDGSTS.E [R9], desc[UR4][R4.64] ;
        /*0a30*/                   HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR8], R24 ;
"""


def test_instructions_are_read_from_the_listing() -> None:
    needs = tuple(aot.INSTRUCTIONS)
    assert aot.missing(LISTING, needs) == ("products on tensor cores", "products in tensor memory")
    assert aot.missing(LISTING.replace(".128 ", " "), needs[3:]) == ("asynchronous copies of 16 bytes",)
    assert aot.missing(LISTING.replace("HGMMA", "HMMA"), needs[:2]) == ("products of warp groups",)


LOSSES = """
import dataclasses
from sheaf_kernels import aot

prefill, decode = (
    next(v for v in aot.all_variants() if v.label == f"{kind} bf16 Q32 K8 D64 page 16")
    for kind in ("long", "short")
)
rows = dataclasses.replace(prefill, constants={**prefill.constants, "BLOCK_M": 32})
waiting = dataclasses.replace(
    decode, constants_for=lambda arch: {**decode.constants_for(arch), "num_stages": 1, "TAIL_STAGES": 1}
)
narrow = dataclasses.replace(decode, unaligned=(*decode.unaligned, "k_cache_ptr", "v_cache_ptr"))
for variant in (prefill, decode, rows, waiting, narrow):
    print(list(aot.compile_variant(variant, 90).lost))
"""


def test_what_the_compiler_loses_is_noticed(tmp_path: Path) -> None:
    """Mutants that compute the same and stay within registers: tiles too short for the products of Hopper,
    loads that are waited for, pointers that nobody knows to be aligned."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", LOSSES], env=env, capture_output=True, text=True)
    copies, products = ["asynchronous copies of 16 bytes"], ["products of warp groups"]
    want = [[], [], products, copies, copies]
    assert done.stdout.splitlines() == [str(lost) for lost in want], done.stderr


def test_the_interpreter_is_refused() -> None:
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "sheaf_kernels.aot"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert "unset TRITON_INTERPRET" in done.stderr
