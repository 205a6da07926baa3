"""``make gpu-check`` without a card: its parts run here in the interpreter, and it fails well."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_check

    return gpu_check


def test_every_kernel_is_checked_in_every_dtype(gpu_check: Any) -> None:
    names = {name.split()[0] for name, _ in gpu_check.kernel_cases()}
    assert names == {
        "paged_attention",
        "rope_kv_write",
        "rms_norm",
        "head_norm",
        "swiglu",
        "adjust",
        "sample",
        "experts",
    }
    assert {"kernels-float32", "kernels-float16", "kernels-bfloat16"} <= set(gpu_check.PARTS)
    assert gpu_check.kernels("bfloat16", "cpu", only="swiglu c1536") == {"checked": 1}
    assert gpu_check.kernels("float16", "cpu", only="rms_norm c64 residual") == {"checked": 1}
    assert gpu_check.kernels("float16", "cpu", only="adjust v300") == {"checked": 1}


def test_one_failing_kernel_does_not_hide_the_others(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise AssertionError("off by one")

    monkeypatch.setattr("sheaf_kernels.parity.check_swiglu", broken)
    with pytest.raises(gpu_check.PartFailed) as failed:
        gpu_check.kernels("float32", "cpu", only="swiglu c1")
    assert failed.value.details["checked"] == 3
    assert set(failed.value.details["failed"].values()) == {"AssertionError: off by one"}


def test_engine_part(gpu_check: Any) -> None:
    part = gpu_check.engine("cpu", shapes=1, prompt_lengths=(1, 20), tokens=3)
    assert part == {"compared": 4, "requests": 2, "tokens": 3}


def test_throughput_part(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpu_model import SMALL

    monkeypatch.setattr(gpu_check, "OUTPUT_TOKENS", 4)
    part = gpu_check.throughput("cpu", SMALL[0], streams=(1, 3))
    assert set(part["streams"]) == {"1", "3"}
    assert all(s["least"] <= s["tok_per_s"] <= s["most"] for s in part["streams"].values())


@pytest.mark.parametrize(("kind", "query"), [("short", 1), ("short", 4), ("draft32", 6), ("long", 17)])
def test_steps_that_are_timed_compute_attention(gpu_check: Any, kind: Any, query: int) -> None:
    import gpu_timing
    import torch
    from sheaf_kernels.paged_attention import paged_attention_reference

    step = gpu_timing.make_step(2, query, 40, "cpu", torch.float32, least_bytes=1)
    assert (len(step.pools), step.num_pages) == (2, 6)
    for call, (k, v) in zip(gpu_timing.attention_calls(step, kind, "cpu"), step.pools, strict=True):
        call()
        want = torch.empty_like(step.out)
        paged_attention_reference(
            step.q, k, v, step.block_table, step.query_start, step.context_len, 128**-0.5, want
        )
        torch.testing.assert_close(step.out, want, rtol=1e-4, atol=1e-5)


def test_bytes_and_operations_are_counted_right(gpu_check: Any) -> None:
    import gpu_timing

    # 4096 tokens of 8 heads of 128, keys and values, two bytes each: 16 MiB.
    assert gpu_timing.attention_bytes(1, 1, 4096, 256, 2) == (16 << 20) + 2 * 32 * 128 * 2 + 4 * 256
    assert gpu_timing.prefill_flops(1, 2) == 4 * 32 * 128 * 3


def test_a_part_that_dies_is_reported(gpu_check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "PART_TIMEOUT_S", 0.01)
    assert gpu_check.spawn_part("engine")["error"] == "not finished within 0.01 s"


def test_a_machine_without_a_card_is_told_so(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_check.py"), "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 2
    assert "no usable CUDA card, nothing was checked" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_report_is_written_after_every_part(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts: dict[str, dict[str, Any]] = {
        "environment": {"ok": True, "gpu": "NVIDIA H100 80GB HBM3", "torch": "2.11.0", "triton": "3.6.0"},
        "engine": {"ok": False, "error": "boom"},
        "attention": {"ok": True, "copy_GB_per_s": 1.0},
    }
    monkeypatch.setattr(gpu_check, "spawn_part", lambda name: {**parts[name], "seconds": 0.1})
    assert gpu_check.main(["--out", str(tmp_path), "--only", "engine", "--only", "attention"]) == 1
    report = json.loads((tmp_path / "gpu-nvidia-h100-80gb-hbm3.json").read_text())
    assert report["engine"]["error"] == "boom"
    assert report["attention"]["ok"]
    assert len(report["commit"]) == 40
    assert "boom" in capsys.readouterr().out


def test_the_wheelhouse_pins_what_constraints_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import wheelhouse

    constraints = (BENCHMARKS.parent / "constraints.txt").read_text()
    entries = wheelhouse.pinned(constraints, wheelhouse.PACKAGES)
    assert entries.count("==") == len(wheelhouse.PACKAGES)
    assert all(f"{name}==" in entries for name in wheelhouse.PACKAGES)
    assert entries.count("--hash=sha256:") >= len(wheelhouse.PACKAGES)
