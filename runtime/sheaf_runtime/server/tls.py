"""The server's certificate, read again when its files change."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

logger = logging.getLogger(__name__)
Fingerprint = tuple[tuple[int, int, int], ...]


class CertificateError(ValueError):
    """The files hold no usable pair; the message names them and says why."""


class Certificate:
    """A certificate chain and its key, both PEM. Without ``keyfile`` the first file holds both.

    Whoever renews them (cert-manager, a Kubernetes secret's mount) replaces files. ``context`` looks at them
    for each new connection, so nothing wakes up while nobody connects; connections that exist keep theirs.

    Raises ``CertificateError`` if there is no usable pair to begin with.
    """

    def __init__(self, certfile: str, keyfile: str | None = None) -> None:
        self._files = (certfile, keyfile or certfile)
        self._seen = self._fingerprint()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """Of the newest pair that belongs together: half of a renewal changes nothing yet."""
        seen = self._fingerprint()
        if seen != self._seen:
            self._seen = seen
            try:
                self._context = self._load()
                logger.info("a new certificate is in use: %s", self._files[0])
            except CertificateError as error:
                logger.warning("%s; the certificate from before stays in use", error)
        return self._context

    def _fingerprint(self) -> Fingerprint:
        """Changes when a file does; a missing one counts as a state too."""
        found = []
        for path in map(Path, self._files):
            try:
                status = path.stat()
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)

    def _load(self) -> ssl.SSLContext:
        certfile, keyfile = self._files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(certfile, keyfile, password=_refuse_encrypted)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            for path in self._files:
                if not Path(path).is_file():
                    raise CertificateError(f"{path} is not a file; give PEM files") from error
            reason = getattr(error, "reason", None) or error
            raise CertificateError(f"{certfile} and {keyfile} are no usable pair: {reason}") from error
        return context


def _refuse_encrypted() -> str:
    """OpenSSL would ask for the passphrase on the terminal and wait there for ever."""
    raise ValueError("the key is encrypted; store it without a passphrase")
