"""The cache folder outside the work tree: built binaries, the demo model. Survives ``make clean``."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """``$SHEAF_CACHE``, else ``$XDG_CACHE_HOME/sheaf``, else ``~/.cache/sheaf``; made if it is missing."""
    if explicit := os.environ.get("SHEAF_CACHE"):
        root = Path(explicit)
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sheaf"
    root = root.expanduser().absolute()
    root.mkdir(parents=True, exist_ok=True)
    return root


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock named after ``path`` (the file ``path.lock``) across processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder ``target``, made by ``build(folder)`` if it does not exist yet.

    ``build`` fills a temporary sibling that is renamed when it returns, so an interrupted run leaves
    nothing half-written; two processes that ask at once build it once.
    """
    if target.is_dir():
        return target
    with locked(target):
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
