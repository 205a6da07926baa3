"""The cache folder outside the work tree: built binaries, the demo model. Survives ``make clean``."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from localcluster.obstacles import require_writable
from localcluster.progress import Progress, Report

REMEDY = "set SHEAF_CACHE to a folder that can be written and has room"
_POLL_SECONDS = 0.2


def cache_root() -> Path:
    """``$SHEAF_CACHE``, else ``$XDG_CACHE_HOME/sheaf``, else ``~/.cache/sheaf``; it may not exist yet."""
    if explicit := os.environ.get("SHEAF_CACHE"):
        root = Path(explicit)
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sheaf"
    return root.expanduser().absolute()


@contextmanager
def locked(path: Path, report: Report | None = None) -> Iterator[None]:
    """Hold an exclusive lock named after ``path`` (the file ``path.lock``) across processes.

    Raises Obstacle if the folder cannot be written to.
    """
    require_writable(path.parent, REMEDY)
    with open(f"{path}.lock", "a+") as handle:
        _lock(handle, f"Waiting for another process that makes {path.name}", report)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _lock(handle: IO[str], title: str, report: Report | None) -> None:
    progress: Progress | None = None
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            handle.seek(0)
            progress = progress or Progress(title, report)
            progress.update(f"process {handle.read() or 'unknown'}")
            time.sleep(_POLL_SECONDS)


def build_once(target: Path, build: Callable[[Path], None], report: Report | None = None) -> Path:
    """Return the folder ``target``, made by ``build(folder)`` if it does not exist yet.

    ``build`` fills a temporary sibling that is renamed when it returns, so an interrupted run leaves
    nothing half-written; two processes that ask at once build it once. Raises Obstacle if the cache folder
    cannot be written to.
    """
    if target.is_dir():
        return target
    with locked(target, report):
        if target.is_dir():
            return target
        for stale in target.parent.glob(f".{target.name}.*"):  # we hold the lock, so nobody is filling it
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            work.chmod(0o755)
            build(work)
            work.rename(target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return target
