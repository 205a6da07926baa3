"""The CPU's kernels as NEON: they compile without a warning, and compute the same in an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from sheaf_kernels.cpu import build

COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"


WARNINGS = ("-Wall", "-Wextra", "-Werror", "-fsyntax-only")


def compile_for_arm64(*arguments: str) -> None:
    (neon,) = (level for level in build.LEVELS if level.machine == "aarch64")
    flags = [flag for flag in build.FLAGS if flag != "-shared"]
    sources = [Path(__file__).with_name("arm64_check.c"), *build.SOURCES.glob("*.c")]
    command = [COMPILER, *flags, *neon.flags, *map(str, sources), *arguments]
    made = subprocess.run(command, capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which(COMPILER), reason=f"no {COMPILER} (Debian: gcc-aarch64-linux-gnu)")
@pytest.mark.skipif(not shutil.which(EMULATOR), reason=f"no {EMULATOR} (Debian: qemu-user)")
def test_sums_in_an_emulator(tmp_path: Path) -> None:
    compile_for_arm64(*WARNINGS)
    compile_for_arm64("-O1", "-static", "-o", str(tmp_path / "check"), "-lm")
    ran = subprocess.run([EMULATOR, str(tmp_path / "check")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
