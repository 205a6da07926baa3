"""Compile ``csrc`` for this machine's CPU, once: the library is kept in a cache folder.

An image may bring libraries in ``prebuilt`` beside this file (``python -m sheaf_kernels.cpu.build`` makes
them); else the system's C compiler makes one when it is first wanted, which takes some seconds.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).with_name("csrc")
PREBUILT = Path(__file__).with_name("prebuilt")
COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-O2", "-std=gnu11", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno", "-Wno-psabi")


class UnavailableError(RuntimeError):
    """These kernels cannot run here; the message says why."""


@dataclass(frozen=True)
class Level:
    """A class of CPUs: the features that /proc/cpuinfo must name, and the compiler's flags for them."""

    name: str
    machine: str
    needs: tuple[str, ...]
    flags: tuple[str, ...]


_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "fma")
_AVX512_FLAGS = tuple(f"-m{feature}" for feature in _AVX512)
_VNNI, _VNNI_FLAGS = (*_AVX512, "avx512_vnni"), (*_AVX512_FLAGS, "-mavx512vnni")
_AVX2, _AVX2_FLAGS = ("avx2", "fma"), ("-mavx2", "-mfma")
# The best first.
LEVELS = (
    Level(
        "amx",
        "x86_64",
        (*_VNNI, "avx512_bf16", "amx_tile", "amx_bf16"),
        (*_VNNI_FLAGS, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
    ),
    Level("avx512_bf16", "x86_64", (*_VNNI, "avx512_bf16"), (*_VNNI_FLAGS, "-mavx512bf16")),
    Level("avx512_vnni", "x86_64", _VNNI, _VNNI_FLAGS),
    Level("avx512", "x86_64", _AVX512, _AVX512_FLAGS),
    Level("avx_vnni", "x86_64", (*_AVX2, "avx_vnni"), (*_AVX2_FLAGS, "-mavxvnni")),
    Level("avx2", "x86_64", _AVX2, _AVX2_FLAGS),
    Level("neon", "aarch64", (), ()),
)


def levels_of(machine: str, features: frozenset[str]) -> list[Level]:
    """Those that a CPU can run, the best first."""
    return [level for level in LEVELS if level.machine == machine and features.issuperset(level.needs)]


def machine_features() -> frozenset[str]:
    """What /proc/cpuinfo says of the first processor; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(flags, ()))


def built_library(level: Level) -> Path:
    """The library for a level, compiled if there is none yet. Raises UnavailableError."""
    name = f"{level.name}-{_sources_digest()}.so"
    for folder in (PREBUILT, cache_folder()):
        if os.access(folder / name, os.R_OK):
            return folder / name
    return build(level, cache_folder())


def build(level: Level, folder: Path) -> Path:
    """Compile into ``folder``, which other processes may do at the same time."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise UnavailableError(f"no C compiler ({', '.join(COMPILERS)}) is installed")
    library = folder / f"{level.name}-{_sources_digest()}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o755 if folder == PREBUILT else 0o700)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "library.so"
            sources = sorted(map(str, SOURCES.glob("*.c")))
            command = [compiler, *FLAGS, *level.flags, *sources, "-o", str(made), "-lm"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[0]
                raise UnavailableError(f"{compiler} could not compile them for {level.name}: {said}")
            made.replace(library)
    except OSError as error:
        raise UnavailableError(f"they cannot be compiled in {folder}: {error}") from error
    return library


def cache_folder() -> Path:
    """$SHEAF_CACHE/kernels, else below $XDG_CACHE_HOME or ~/.cache; one of this user's alone in the temporary
    folder where that cannot be written."""
    if named := os.environ.get("SHEAF_CACHE"):
        return Path(named) / "kernels"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    if os.access(existing, os.W_OK):
        return home / "sheaf" / "kernels"
    own = Path(tempfile.gettempdir()) / f"sheaf-kernels-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.stat().st_uid != os.getuid() or own.is_symlink():
        raise UnavailableError(f"{own} is somebody else's")
    return own


def _sources_digest() -> str:
    digest = hashlib.sha256(repr((FLAGS, LEVELS)).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def main() -> None:
    """Compile into ``prebuilt`` for the CPUs of this machine's kind, which are met later; with ``--own``, for
    this one only, so that the checkout's servers start at once."""
    levels = [level for level in LEVELS if level.machine == platform.machine()]
    if sys.argv[1:] == ["--own"]:
        levels = levels_of(platform.machine(), machine_features())[:1]
    for level in levels:
        print(build(level, PREBUILT))


if __name__ == "__main__":
    main()
