"""The API keys: those of the command line, and those of a file that may be renewed while the server runs."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from pathlib import Path


class KeyFileError(ValueError):
    """The flags or the file hold no keys; the message says why."""


class ApiKeys:
    """``required`` is False without any. Raises ``KeyFileError`` for a file without keys."""

    def __init__(self, keys: Sequence[str], path: str | None) -> None:
        if not all(key.strip() for key in keys):
            raise KeyFileError("--api-key is empty: anybody could call; give a key, or leave the flag out")
        self._fixed = [key.strip().encode() for key in keys]
        self._path = Path(path) if path else None
        self._seen = (0, 0)
        self._read: list[bytes] = []
        if self._path is not None:
            self._read = self._load(self._path)

    @property
    def required(self) -> bool:
        return bool(self._fixed or self._path)

    def accept(self, authorization: bytes) -> bool:
        """Compares with every key, so that the time says nothing about which one was close. The name of the
        scheme is written in any case (RFC 9110, 11.1)."""
        self._refresh()
        scheme, _, given = authorization.partition(b" ")
        matches = [hmac.compare_digest(given.strip(), key) for key in self._fixed + self._read]
        return scheme.lower() == b"bearer" and any(matches)

    def _refresh(self) -> None:
        if self._path is None:
            return
        try:
            if self._stamp(self._path) != self._seen:
                self._read = self._load(self._path)
        except (OSError, KeyFileError):
            return  # in the middle of a renewal: the keys from before count

    def _load(self, path: Path) -> list[bytes]:
        try:
            self._seen = self._stamp(path)
            lines = path.read_text("utf-8-sig").split()
        except (OSError, UnicodeDecodeError) as error:
            raise KeyFileError(
                f"--api-key-file {path}: {getattr(error, 'strerror', None) or error}"
            ) from error
        if not lines:
            raise KeyFileError(f"--api-key-file {path} is empty; write one key a line")
        return [line.encode() for line in lines]

    @staticmethod
    def _stamp(path: Path) -> tuple[int, int]:
        status = path.stat()
        return status.st_mtime_ns, status.st_ino
