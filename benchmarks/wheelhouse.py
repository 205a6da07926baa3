"""Collect the wheels that a bare CUDA machine without network lacks, into .wheelhouse: ``make wheelhouse``.

Such a machine has Python 3.12 with torch, Triton, transformers and numpy. ``gpu_check.py`` unpacks what it
finds here. Versions and hashes are those of constraints.txt.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / ".wheelhouse"
MAX_BYTES = 64 << 20
PYTHON, PLATFORMS = "3.12", ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
# What the runtime needs beside torch and transformers, and what that needs in turn.
PACKAGES = (
    *("msgspec", "orjson", "pyzmq", "prometheus-client", "jinja2", "markupsafe", "tokenizers", "safetensors"),
    *("fastapi", "starlette", "pydantic", "pydantic-core", "annotated-types", "annotated-doc"),
    *("typing-inspection", "typing-extensions", "anyio", "idna", "sniffio"),
    *("uvicorn", "uvloop", "httptools", "h11", "click"),
)


def pinned(constraints: str, names: Sequence[str]) -> str:
    """The entries of these packages, hashes included. Raises KeyError for one that is not there."""
    entries = {
        match[1].lower(): match[0]
        for match in re.finditer(r"^([A-Za-z0-9._-]+)==(?:.*\\\n)*.*", constraints, re.MULTILINE)
    }
    return "\n".join(entries[name] for name in names) + "\n"


def main() -> int:
    argparse.ArgumentParser(prog="wheelhouse.py", description=__doc__.split("\n")[0]).parse_args()
    wanted = pinned((ROOT / "constraints.txt").read_text(), PACKAGES)
    TARGET.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write(wanted)
        requirements.flush()
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        command += ["--only-binary=:all:", "--require-hashes", "--python-version", PYTHON]
        command += [f"--platform={p}" for p in PLATFORMS]
        subprocess.run([*command, "--dest", str(TARGET), "-r", requirements.name], check=True)
    wheels = sorted(TARGET.glob("*.whl"))
    size = sum(w.stat().st_size for w in wheels)
    print(f"{len(wheels)} wheels, {size / 2**20:.1f} MiB in {TARGET}")
    if size > MAX_BYTES:
        print(f"more than {MAX_BYTES >> 20} MiB: drop packages from PACKAGES in {__file__}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
