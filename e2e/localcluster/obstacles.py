"""What a machine can put in the way: one line that says what to do, before anything is half done."""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

PREFIX = "sheaf: "  # of the line with which a command fails
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Obstacle(RuntimeError):
    """The machine does not give what is needed. The message is one line and ends with what to do."""


def require_writable(folder: Path, remedy: str) -> None:
    """Raise Obstacle unless files can be made in ``folder``, which is made first if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise Obstacle(f"the disk that holds {folder} is full; make room, or {remedy}") from None
        raise Obstacle(f"{folder} cannot be written to ({error.strerror}); {remedy}") from None


def temporary_folder() -> Path:
    """``$TMPDIR`` or what stands for it. Raises Obstacle if no such folder can be written to."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        raise Obstacle("no temporary folder can be written to; set TMPDIR to one that can") from None


def require_room(needs: Mapping[Path, int], purpose: str, remedy: str) -> None:
    """Raise Obstacle unless that many bytes are free under each folder; folders of one disk add up."""
    by_disk: dict[int, list[Path]] = {}
    for folder in needs:
        by_disk.setdefault(folder.stat().st_dev, []).append(folder)
    for folders in by_disk.values():
        needed = sum(needs[folder] for folder in folders)
        disk = os.statvfs(folders[0])
        free = disk.f_bavail * disk.f_frsize
        if free < needed:
            raise Obstacle(
                f"{purpose} needs {needed / 1e9:.1f} GB under {folders[0]}, where {free / 1e9:.1f} GB are "
                f"free; make room, or {remedy}"
            )


def in_one_line(error: OSError) -> str | None:
    """What to do about a disk that ran full or cannot be written to; None for other errors."""
    if error.errno in _NO_ROOM:
        where = error.filename or "the cache folder or the temporary folder"
        return f"no room is left on the disk for {where}; make room and run it again, what is whole is kept"
    if error.errno == errno.EROFS:
        return f"{error.filename} is on a read-only disk; set SHEAF_CACHE or TMPDIR to another folder"
    return None


def command(main: Callable[[], None], *expected: type[Exception]) -> None:
    """Run a command's ``main``: obstacles and ``expected`` errors become one line on stderr and exit code 1.

    SIGTERM and SIGHUP are as Ctrl-C, with exit code 130; SIGINT too where a shell started us with "&", which
    would ignore it.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError):  # whoever read our output has gone: nobody is there to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        if isinstance(error, (Obstacle, *expected)):
            sys.exit(f"{PREFIX}{error}")
        if isinstance(error, OSError) and (line := in_one_line(error)):
            sys.exit(f"{PREFIX}{line}")
        raise


def _interrupt(*_: object) -> NoReturn:
    # A second one tears the clean-up; what we have started then ends because we do.
    raise KeyboardInterrupt
