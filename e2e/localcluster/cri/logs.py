"""Container logs in the CRI format, one line per write of the container: `TIME STREAM TAG TEXT`.

TIME is RFC 3339 with nanoseconds, STREAM `stdout` or `stderr`, TAG `F` for a full line and `P` for a part
of a long one (`kubectl logs` joins the parts).
"""

import logging
import os
import time
from pathlib import Path

log = logging.getLogger("cri.logs")

MAX_LINE = 16 * 1024  # bytes of text per entry, as in containerd


def format_entries(text: bytes, stream: str, timestamp: bytes, *, final: bool) -> tuple[bytes, bytes]:
    """The log entries for `text`, and the bytes of an unfinished line to put before the next text.

    With `final` nothing is kept: the last line becomes an entry even without its newline.
    """
    head = timestamp + b" " + stream.encode()
    *lines, rest = text.split(b"\n")
    entries = bytearray()
    for line in lines:
        parts, last = _parts(line)
        for part in parts:
            entries += head + b" P " + part + b"\n"
        entries += head + b" F " + last + b"\n"
    parts, rest = _parts(rest)
    for part in parts:
        entries += head + b" P " + part + b"\n"
    if final and rest:
        entries += head + b" F " + rest + b"\n"
        rest = b""
    return bytes(entries), rest


def _parts(line: bytes) -> tuple[list[bytes], bytes]:
    cut = len(line) - (len(line) % MAX_LINE or min(len(line), MAX_LINE))
    return [line[i : i + MAX_LINE] for i in range(0, cut, MAX_LINE)], line[cut:]


def timestamp(nanoseconds: int) -> bytes:
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % fraction


class ContainerLog:
    """The log file of one container. `reopen` after the kubelet has renamed it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._open()
        self._unfinished = {"stdout": b"", "stderr": b""}

    def write(self, stream: str, text: bytes) -> None:
        self._write(stream, text, final=False)

    def close(self) -> None:
        """Write what has not ended in a newline and close the file; calling it again does nothing."""
        if self._file < 0:
            return
        for stream in self._unfinished:
            self._write(stream, b"", final=True)
        os.close(self._file)
        self._file = -1

    def reopen(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = self._open()

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _write(self, stream: str, text: bytes, *, final: bool) -> None:
        text = self._unfinished[stream] + text
        entries, self._unfinished[stream] = format_entries(
            text, stream, timestamp(time.time_ns()), final=final
        )
        if not entries:
            return
        try:
            os.write(self._file, entries)
        except OSError as error:  # a full disk costs log lines, not the container
            log.error("%s: output is lost: %s", self.path, error)
