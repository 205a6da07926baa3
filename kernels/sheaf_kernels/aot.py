"""Compile every kernel and configuration ahead of time, without a GPU, and hold them to their budgets.

    python -m sheaf_kernels.aot [--arch 90] [--main] [--kernel NAME]

Prints registers per thread, bytes of local memory (spills) per thread and shared memory per block, as
``cuobjdump`` reads them from the compiled binary, and exits 1 when one is over its budget in
``budgets.toml`` beside this file, or when the machine code lacks an instruction that the kernel's speed rests
on: products on tensor cores (those of warp groups on sm_90 where a tile has 64 rows), copies of 16 bytes into
shared memory that no thread waits for. ``--main`` keeps the shapes that most models have."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sheaf_kernels import (
    experts,
    head_norm,
    paged_attention,
    rms_norm,
    rope_kv_write,
    sample,
    split_kv,
    swiglu,
)
from sheaf_kernels.numerics import INTERPRETED, LOG2_E, next_power_of_2

ARCHS = (80, 90, 100)
POINTER = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
BUDGETS = Path(__file__).with_name("budgets.toml")
# As they stand in the listing of a binary.
INSTRUCTIONS = {
    "products on tensor cores": r"HMMA\.",
    "products of warp groups": r"HGMMA\.",
    "products in tensor memory": r"UTCHMMA",
    "asynchronous copies of 16 bytes": r"LDGSTS\.\S*\.128",
}


@dataclass(frozen=True)
class Variant:
    """One compilation: ``signature`` maps run-time arguments to Triton types, ``constants`` is all the rest.

    Pointers and strides are taken to be multiples of 16, as they are in the engine.
    """

    kernel: Any
    label: str
    signature: dict[str, str]
    constants: dict[str, Any]
    main: bool = False
    unaligned: tuple[str, ...] = ()
    constants_for: Callable[[int], dict[str, Any]] = lambda arch: {}  # those that depend on the architecture
    budget: str | None = None  # a table of its own inside the kernel's
    needs: Callable[[int], tuple[str, ...]] = lambda arch: ()  # keys of INSTRUCTIONS, by architecture

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass(frozen=True)
class Usage:
    registers: int
    spills: int
    shared: int
    lost: tuple[str, ...] = ()  # instructions that the variant needs and the binary lacks


@dataclass(frozen=True)
class AttentionShape:
    """Q, K, D and B; ``window`` in tokens (0: none), ``softcap`` (0: none)."""

    dtype: torch.dtype
    q: int
    k: int
    head_dim: int
    page: int = 16
    main: bool = False
    window: int = 0
    softcap: float = 0.0
    sinks: bool = False

    @property
    def label(self) -> str:
        beside = [f"window {self.window}"] * bool(self.window) + ["cap"] * bool(self.softcap)
        beside += ["sinks"] * self.sinks
        shape = f"{SHORT[self.dtype]} Q{self.q} K{self.k} D{self.head_dim} page {self.page}"
        return " ".join([shape, *beside])


def attention_shapes() -> Iterator[AttentionShape]:
    for dtype, head_dim, page in product(POINTER, (64, 96, 128), (16, 32, 64)):
        main = dtype == torch.bfloat16 and head_dim != 96 and page == 16
        yield AttentionShape(dtype, 32, 8, head_dim, page, main)
    for q, k in ((8, 8), (28, 4), (9, 3), (64, 4)):
        yield AttentionShape(torch.bfloat16, q, k, 128)
    # Gemma 2 and 3, GPT-OSS, Mistral: in what they are published in.
    dtype = torch.bfloat16
    yield AttentionShape(dtype, 8, 4, 256, main=True, window=4096, softcap=50.0)
    yield AttentionShape(dtype, 8, 4, 256, softcap=50.0)
    yield AttentionShape(dtype, 4, 1, 256, window=512)
    yield AttentionShape(dtype, 64, 8, 64, main=True, window=128, sinks=True)
    yield AttentionShape(dtype, 64, 8, 64, sinks=True)
    yield AttentionShape(dtype, 32, 8, 128, window=4096)


def product_needs(dtype: torch.dtype, rows: int, arch: int) -> tuple[str, ...]:
    """Float32 is for checks."""
    if dtype == torch.float32:
        return ()
    products = {90: "products of warp groups", 100: "products in tensor memory"} if rows >= 64 else {}
    return products.get(arch, "products on tensor cores"), "asynchronous copies of 16 bytes"


def paged_attention_variants() -> Iterator[Variant]:
    for shape, kind in product(attention_shapes(), paged_attention.SHAPES):
        dtype, d, p = shape.dtype, shape.head_dim, POINTER[shape.dtype]
        if kind not in ("short", "long") and shape.page != 16:
            continue
        rows = paged_attention.tile_rows(kind, dtype, d)
        yield Variant(
            paged_attention.paged_attention_kernel, f"{kind} {shape.label}",
            {
                "q_ptr": p, "k_cache_ptr": p, "v_cache_ptr": p, "block_table_ptr": "*i32",
                "query_start_ptr": "*i32", "context_len_ptr": "*i32",
                "first_work_ptr": "*i32", "first_slot_ptr": "*i32", "chunk_ptr": "*i32", "out_ptr": p,
                "partial_ptr": "*fp32", "lse_ptr": "*fp32", "sinks_ptr": p,
                "q_stride": "i32", "out_stride": "i32", "block_table_stride": "i32", "scale_log2": "fp32",
            },
            {
                "Q": shape.q, "K": shape.k, "B": shape.page, "D": d, "BLOCK_S": 256,
                "BLOCK_M": rows, "BLOCK_D": next_power_of_2(d),
                "WINDOW": shape.window, "MULTIPLE": split_kv.CHUNK_MULTIPLE,
                "CAP_LOG2": shape.softcap * LOG2_E, "SINKS": shape.sinks,
                "UNIFORM": kind == "uniform",
            },
            shape.main and (kind in ("short", "long") or (d == 128 and not shape.window)),
            unaligned=("block_table_stride",),
            constants_for=partial(paged_attention.launch_options, dtype, d, rows),
            budget=kind,
            needs=partial(product_needs, dtype, rows),
        )  # fmt: skip


def split_kv_variants() -> Iterator[Variant]:
    for (dtype, d), kind in product(product(POINTER, (64, 96, 128, 256)), paged_attention.PLANS):
        rows = paged_attention.tile_rows(kind, dtype, d)
        yield Variant(
            split_kv.merge_kernel, f"{kind} {SHORT[dtype]} Q32 K8 D{d}",
            {
                "query_start_ptr": "*i32", "context_len_ptr": "*i32", "first_slot_ptr": "*i32",
                "chunk_ptr": "*i32", "out_ptr": POINTER[dtype],
                "partial_ptr": "*fp32", "lse_ptr": "*fp32", "out_stride": "i32",
            },
            {
                "Q": 32, "K": 8, "D": d, "BLOCK_S": 256, "BLOCK_M": rows, "BLOCK_D": next_power_of_2(d),
                "WINDOW": 0, "MULTIPLE": split_kv.CHUNK_MULTIPLE, **split_kv.merge_options(rows),
            },
            dtype == torch.bfloat16 and d == 128,
        )  # fmt: skip
    for seqs, programs, window in ((64, 33, 0), (255, 264, 0), (1023, 33, 0), (255, 264, 128)):
        pointers = ("query_start_ptr", "context_len_ptr", "first_work_ptr", "first_slot_ptr", "chunk_ptr")
        yield Variant(
            split_kv.plan_kernel, f"{seqs} sequences, {programs} programs, window {window}",
            {**dict.fromkeys(pointers, "*i32"), "num_seqs": "i32"},
            {
                "LEAST": 1, "MOST": 4, "BLOCK_Q": 4,
                "PROGRAMS": programs, "WAVES": paged_attention.SHAPES["short"].waves,
                "COST": split_kv.ITEM_COST, "MIN_CHUNK": paged_attention.SHAPES["short"].min_chunk,
                "MULTIPLE": split_kv.CHUNK_MULTIPLE, "BLOCK_S": next_power_of_2(seqs + 1), "WINDOW": window,
                "num_warps": split_kv.PLAN_WARPS,
            },
            seqs == 255 and not window,
            unaligned=("num_seqs",),
        )  # fmt: skip


def rope_kv_write_variants() -> Iterator[Variant]:
    for dtype, d, page in [
        *product(POINTER, (64, 96, 128), (16,)),
        *product([torch.bfloat16], [128], (32, 64)),
    ]:
        p = POINTER[dtype]
        yield Variant(
            rope_kv_write.rope_kv_write_kernel, f"{SHORT[dtype]} Q32 K8 D{d} page {page}",
            {
                "q_ptr": p, "k_ptr": p, "v_ptr": p, "cos_ptr": "*fp32", "sin_ptr": "*fp32",
                "slot_mapping_ptr": "*i64", "k_cache_ptr": p, "v_cache_ptr": p,
                "q_stride": "i32", "k_stride": "i32", "v_stride": "i32",
                "cos_stride": "i32", "sin_stride": "i32",
            },
            {
                "Q": 32, "K": 8, "B": page, "D": d, "BLOCK_H": next_power_of_2(d // 2),
                "BLOCK_HEADS": rope_kv_write.BLOCK_HEADS, "num_warps": 2,
            },
            dtype == torch.bfloat16 and d == 128 and page == 16,
        )  # fmt: skip


def row_variants() -> Iterator[Variant]:
    """Norms and SwiGLU."""
    widths = product(POINTER, (576, 1024, 4096, 8192), (False, True))
    wide = [(torch.bfloat16, 4096, True), (torch.float16, 2304, False)]
    for (dtype, channels, residual), is_wide in [*product(widths, [False]), *product(wide, [True])]:
        p = POINTER[dtype]
        yield Variant(
            rms_norm.rms_norm_kernel,
            f"{SHORT[dtype]} C{channels}{' with residual' if residual else ''}{' wide' if is_wide else ''}",
            {
                "x_ptr": p, "residual_ptr": p, "weight_ptr": "*fp32" if is_wide else p,
                "y_ptr": p, "h_ptr": p, "x_stride": "i32", "residual_stride": "i32", "eps": "fp32",
            },
            {
                "C": channels, "BLOCK_C": next_power_of_2(channels), "HAS_RESIDUAL": residual,
                "WIDE": is_wide,
                **rms_norm.launch_options(channels),
            },
            dtype == torch.bfloat16 and channels == 4096 and residual and not is_wide,
        )  # fmt: skip
    # Heads of their own, and a norm of all heads together (OLMo 2).
    for dtype, (heads, d) in product(POINTER, ((32, 128), (8, 64), (4, 256), (1, 4096))):
        p = POINTER[dtype]
        yield Variant(
            head_norm.head_norm_kernel, f"{SHORT[dtype]} H{heads} D{d}",
            {"x_ptr": p, "weight_ptr": p, "x_stride": "i32", "eps": "fp32"},
            {
                "H": heads, "D": d, "BLOCK_D": next_power_of_2(d), "WIDE": False, "num_warps": 4,
                "BLOCK_HEADS": min(next_power_of_2(heads), head_norm.MAX_BLOCK_HEADS),
            },
            dtype == torch.bfloat16 and heads == 32,
        )  # fmt: skip
    for dtype, channels in product(POINTER, (1536, 14336)):
        p = POINTER[dtype]
        yield Variant(
            swiglu.swiglu_kernel, f"{SHORT[dtype]} C{channels}",
            {"gate_up_ptr": p, "y_ptr": p, "gate_up_stride": "i32"},
            {"C": channels, "BLOCK_C": swiglu.BLOCK_C, "num_warps": 4},
            dtype == torch.bfloat16 and channels == 14336,
        )  # fmt: skip


def sample_variants() -> Iterator[Variant]:
    for dtype, vocab in product(POINTER, (32000, 49152, 128256, 151936, 262144)):
        chunks = triton.cdiv(vocab, sample.CHUNK_V)
        groups = chunks * (sample.CHUNK_V // sample.GROUP_V)
        shape = {"V": vocab, "C": chunks, "CHUNK_V": sample.CHUNK_V, "GROUP_V": sample.GROUP_V}
        main, p = dtype == torch.bfloat16 and vocab == 128256, POINTER[dtype]
        summaries = {"best_ptr": "*fp32", "first_ptr": "*i32", "mass_ptr": "*fp32", "group_best_ptr": "*fp32"}
        # What is not there is a pointer to something that is.
        for wishes, drawn in product((False, True), repeat=2):
            wished = {
                **dict.fromkeys(("history_ptr", "rows_ptr", "flags_ptr", "mask_ptr", "bits_ptr"), "*i32"),
                **dict.fromkeys(("repetition_ptr", "frequency_ptr", "presence_ptr"), "*fp32"),
                **dict.fromkeys(("bias_ptr", "adjusted_ptr"), "*fp32"),
            }
            yield Variant(
                sample.survey_kernel,
                f"{SHORT[dtype]} V{vocab}{' with wishes' if wishes else ''}{'' if drawn else ' greedy'}",
                {
                    "logits_ptr": p, "temperature_ptr": "*fp32",
                    **(wished if wishes else dict.fromkeys(wished, p)), **summaries,
                    "logits_stride": "i32", "bits_stride": "i32",
                },
                {**shape, "WISHES": wishes, "DRAWN": drawn, "num_warps": sample.SURVEY_WARPS},
                main and wishes and drawn,
                unaligned=("bits_stride",),
            )  # fmt: skip
        names = ("temperature_ptr", "top_k_ptr", "top_p_ptr", "margin_ptr", "uniform_ptr")
        for drawn in (False, True):
            parameters = ("*fp32", "*i32", "*fp64", "*fp32", "*fp64") if drawn else (p,) * 5
            yield Variant(
                sample.choose_kernel, f"{SHORT[dtype]} V{vocab}{'' if drawn else ' greedy'}",
                {
                    "logits_ptr": p, **dict(zip(names, parameters, strict=True)), **summaries,
                    "listed_ptr": "*i32", "ids_ptr": "*i32", "token_ptr": "*i64", "logits_stride": "i32",
                },
                {
                    **shape, "FLOOR_BIT": sample.FLOOR_BIT, "BLOCK_C": next_power_of_2(chunks),
                    "BLOCK_G": next_power_of_2(groups), "BLOCK": sample.BLOCK_N, "BITS": sample.DIGIT_BITS,
                    "DRAWN": drawn, "num_warps": sample.choose_warps(drawn),
                },
                main and drawn,
            )  # fmt: skip


def experts_variants() -> Iterator[Variant]:
    """Mixtral, Qwen3-30B-A3B and GPT-OSS: pairs at one token, at 64, and at a chunk of a prompt."""
    yield Variant(
        experts.sort_pairs_kernel, "",
        {"chosen_ptr": "*i64", "sorted_ptr": "*i32", "first_ptr": "*i32", "pairs": "i32"},
        {"BLOCK_P": experts.BLOCK_P, "num_warps": 4},
        True,
        unaligned=("pairs",),
    )  # fmt: skip
    shapes = ((8, 2, 4096, 28672), (128, 8, 2048, 1536), (32, 4, 2880, 5760))
    for dtype, (count, top_k, channels, out), rows in product(POINTER, shapes, (16, 32, 64, 128)):
        p, bias, gate_up = POINTER[dtype], count == 32, rows > 16
        yield Variant(
            experts.grouped_linear_kernel, f"{SHORT[dtype]} E{count} C{channels} N{out} rows {rows}",
            {
                "x_ptr": p, "weight_ptr": p, "bias_ptr": p, "sorted_ptr": "*i32", "first_ptr": "*i32",
                "scale_ptr": p if gate_up else "*fp32", "y_ptr": p, "x_stride": "i32",
            },
            {
                "E": count, "C": channels, "N": out, "TOP_K": top_k, "BY_TOKEN": gate_up,
                "IN_ORDER": not gate_up, "BIASED": bias, "SCALE_IN": False, "SCALE_OUT": not gate_up,
                "BLOCK_E": next_power_of_2(count), "BLOCK_M": rows,
                **experts.launch_options(dtype, rows),
            },
            dtype == torch.bfloat16 and count == 128 and rows in (16, 128),
            budget="tall" if rows >= 64 else "flat",
            needs=partial(product_needs, dtype, rows),
        )  # fmt: skip


def all_variants() -> list[Variant]:
    return [
        *paged_attention_variants(),
        *split_kv_variants(),
        *rope_kv_write_variants(),
        *row_variants(),
        *sample_variants(),
        *experts_variants(),
    ]


def compile_variant(variant: Variant, arch: int) -> Usage:
    """Compile for ``sm_<arch>`` and read the binary's resource usage. Raises what Triton or ptxas raises."""
    chosen = {**variant.constants, **variant.constants_for(arch)}
    constants = {k: v for k, v in chosen.items() if k in variant.kernel.arg_names}
    options = {k: v for k, v in chosen.items() if k not in constants}
    signature = {name: variant.signature.get(name, "constexpr") for name in variant.kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(variant.kernel.arg_names)
        if (signature[name].startswith("*") or signature[name].startswith("i"))
        and name not in variant.unaligned
    }
    source = ASTSource(
        fn=variant.kernel,
        signature=signature,
        constexprs={(variant.kernel.arg_names.index(k),): v for k, v in constants.items()},
        attrs=aligned,
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        text = read_binary("-res-usage", cubin.name)
        needs = variant.needs(arch)
        lost = missing(read_binary("-sass", cubin.name), needs) if needs else ()
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    assert found, f"cuobjdump printed no resource usage: {text}"
    registers, stack, local = map(int, found.groups())
    return Usage(registers, stack + local, int(compiled.metadata.shared), lost)


def missing(listing: str, needs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in needs if not re.search(rf"\b{INSTRUCTIONS[name]}", listing))


def read_binary(what: str, path: str) -> str:
    return subprocess.run([cuobjdump(), what, path], check=True, capture_output=True, text=True).stdout


def cuobjdump() -> str:
    """The tool that ships inside the triton package."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def over_budget(variant: Variant, arch: int, usage: Usage, budgets: dict[str, Any]) -> list[str]:
    """What exceeds the kernel's budget, ``[kernel]`` or ``[kernel.NAME]`` where the variant names one, and
    what the binary lacks; ``[....sm_80]`` refines a budget for one architecture."""
    table = budgets.get(variant.name)
    if table is None:
        return [f"{variant.name} has no budget in {BUDGETS.name}"]
    if variant.budget is not None:
        table = table[variant.budget]
    limits = {**table, **table.get(f"sm_{arch}", {})}
    over = [
        f"{key} {getattr(usage, key)} > {limits[key]}"
        for key in ("registers", "spills", "shared")
        if getattr(usage, key) > limits[key]
    ]
    return over + [f"no {name}" for name in usage.lost]


def compile_all(indices: list[int], archs: list[int], workers: int) -> Iterator[tuple[Variant, int, Usage]]:
    """Compile ``all_variants()[i]`` for each index and architecture, in ``workers`` processes."""
    variants = all_variants()
    jobs = list(product(indices, archs))
    spawn = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="sheaf-aot-") as cache,  # only measured: nothing stays in the home
        ProcessPoolExecutor(workers, spawn, _compile_into, (cache,)) as pool,
    ):
        for (index, arch), usage in zip(jobs, pool.map(_compile_job, jobs), strict=True):
            yield variants[index], arch, usage


def _compile_into(cache: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = cache


def _compile_job(job: tuple[int, int]) -> Usage:
    index, arch = job
    return compile_variant(all_variants()[index], arch)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sheaf_kernels.aot", allow_abbrev=False, description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--arch", type=int, action="append", choices=ARCHS, help="compute capability, e.g. 90"
    )
    parser.add_argument("--kernel", action="append", help="only kernels whose name contains this")
    parser.add_argument("--main", action="store_true", help="only the shapes that most models have")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(argv)
    if INTERPRETED:
        parser.error("unset TRITON_INTERPRET: interpreted kernels cannot be compiled")
    chosen = [
        i
        for i, v in enumerate(all_variants())
        if (v.main or not args.main) and (not args.kernel or any(k in v.name for k in args.kernel))
    ]
    budgets = tomllib.loads(BUDGETS.read_text())
    failures = 0
    print(f"{'kernel':22} {'variant':40} {'arch':6} {'registers':>9} {'spills':>7} {'shared':>7}")
    for variant, arch, usage in compile_all(chosen, args.arch or list(ARCHS), args.workers):
        over = over_budget(variant, arch, usage, budgets)
        failures += bool(over)
        numbers = f"{usage.registers:9} {usage.spills:7} {usage.shared:7}"
        print(
            f"{variant.name:22} {variant.label:40} sm_{arch:<3} {numbers}"
            + (f"  OVER BUDGET: {', '.join(over)}" if over else ""),
            flush=True,
        )
    print(
        f"{len(chosen)} variants, {failures} over budget"
        if failures
        else f"{len(chosen)} variants within budget"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
