"""What went wrong with the hub, in one line that says what to do."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.file_download import repo_folder_name

_SHOWN = 3


@dataclass(frozen=True)
class Words:
    repo: str
    revision: str | None
    has_token: bool

    def of(self, error: Exception, missing: Sequence[str] = ()) -> str:
        """``missing`` are the files that were still to come."""
        for cause in _chain(error):
            if words := self._cause(cause, missing):
                return words
        told = " ".join(str(error).split()) or type(error).__name__
        return f"{self.repo} cannot be downloaded from {self._hub}: {told}"

    def incomplete(self, missing: Sequence[str]) -> str:
        """Offline, with part of it in the cache, or nothing."""
        named = f"{', '.join(missing[:_SHOWN])}{', ...' if len(missing) > _SHOWN else ''}"
        lacks = f"lacks {named} of {self._what}" if missing else f"does not hold {self._what}"
        return f"the cache {self._cache} {lacks}, and {self._why_not}; start once with the hub in reach"

    def no_room(self, needed: int, free: int) -> str:
        return (
            f"{self.repo} needs {needed / 1e9:.2f} GB more in {self._cache}, where {free / 1e9:.2f} GB "
            "are free; make room, or set HF_HOME to a folder on a larger disk"
        )

    def altered(self, names: Sequence[str]) -> str:
        return (
            f"{', '.join(names[:_SHOWN])} of {self.repo} came with other bytes than {self._hub} says "
            "(SHA-256); start again, and see what proxy or mirror answers in its place"
        )

    @property
    def _hub(self) -> str:
        return constants.ENDPOINT

    @property
    def _cache(self) -> str:
        return constants.HF_HUB_CACHE

    @property
    def _what(self) -> str:
        return self.repo if self.revision is None else f"{self.repo} at {self.revision}"

    @property
    def _why_not(self) -> str:
        if constants.is_offline_mode():
            return "HF_HUB_OFFLINE is set, so nothing is downloaded (HF_HUB_OFFLINE=0 allows it)"
        return f"{self._hub} cannot be reached"

    @property
    def _page(self) -> str:
        return f"{self._hub}/{self.repo}"

    def _cause(self, error: BaseException, missing: Sequence[str]) -> str | None:
        if isinstance(error, HfHubHTTPError):
            return self._answered(error)
        if isinstance(error, OfflineModeIsEnabled):
            return self.incomplete(missing)
        if isinstance(error, httpx2.ProxyError):
            return f"the proxy does not lead to {self._hub}: {error}; check HTTPS_PROXY and NO_PROXY"
        if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
            return f"HF_ENDPOINT {self._hub} is no address of a hub; write https://HOST"
        if isinstance(error, RevisionResolutionError):  # by itself: what it came from was asked before
            return self.incomplete(missing)
        if isinstance(error, httpx2.TransportError):
            told = str(error) or type(error).__name__
            if missing:
                return f"{self.incomplete(missing)} ({told})"
            return (
                f"{self._hub} cannot be reached ({told}), and the cache {self._cache} does not "
                f"hold {self._what}; check network and proxy, or set HF_ENDPOINT to a mirror"
            )
        if isinstance(error, FileMetadataError):
            return f"{self._hub} does not answer as a hub does: {error}; check HF_ENDPOINT"
        if isinstance(error, OSError):
            return self._cut(error) if "Consistency check failed" in str(error) else self._disk(error)
        return None

    def _answered(self, error: HfHubHTTPError) -> str:
        url = error.response.url
        if url.host != httpx2.URL(self._hub).host:
            return (
                f"{url.host}, to which {self._hub} refers for {url.path.rpartition('/')[2]}, answers "
                f"{error.response.status_code}; start again, and see that proxy and firewall let it through"
            )
        denied = error.response.status_code in (401, 403, 404) and not isinstance(
            error, RevisionNotFoundError
        )
        return self._answer(error) + (self._kept if denied else "")

    @property
    def _kept(self) -> str:
        """A model may have been taken away, or its token: whether what is here is to be served is for the
        user to say."""
        folder = Path(self._cache) / repo_folder_name(repo_id=self.repo, repo_type="model") / "snapshots"
        if not folder.is_dir() or not any(folder.iterdir()):
            return ""
        return "; the cache has it from an earlier time, and HF_HUB_OFFLINE=1 serves that"

    def _answer(self, error: HfHubHTTPError) -> str:
        status = error.response.status_code
        if isinstance(error, GatedRepoError):
            if self.has_token:
                return (
                    f"{self.repo} is gated, and the token's account has no access: ask for it at {self._page}"
                )
            return (
                f"{self.repo} is gated: accept its terms at {self._page} and set HF_TOKEN (or --hf-token) to "
                "a token of that account"
            )
        if isinstance(error, RevisionNotFoundError):
            return f"{self.repo} has no revision {self.revision}; its branches and tags are at {self._page}"
        if isinstance(error, RepositoryNotFoundError):
            token = (
                "or the token may not see it"
                if self.has_token
                else "or it is private: set HF_TOKEN (or --hf-token)"
            )
            return (
                f"there is no folder {self.repo} here, and {self._hub} has no model of that name, "
                f"{token}; check the spelling"
            )
        if isinstance(error, DisabledRepoError):
            return f"{self._hub} has disabled {self.repo}; name another model"
        if isinstance(error, RemoteEntryNotFoundError):
            return f"{error.response.url} is gone, although it was listed; start again"
        if status == 401:
            return (
                f"{self._hub} refuses the token, which is wrong or has expired; set HF_TOKEN (or --hf-token)"
            )
        if status == 403:
            return (
                f"the token may not read {self.repo} ({self._hub} answers 403); a fine-grained token needs "
                "read access to the contents of this repository"
            )
        if status == 429:
            return f"{self._hub} takes no more requests for now (429); start again later, or with a token"
        if status >= 500:
            return (
                f"{self._hub} answers {status}, and the cache does not hold {self._what}; start again later"
            )
        return f"{self._hub} answers {status} for {error.response.url}; check the name and HF_ENDPOINT"

    def _cut(self, error: OSError) -> str:
        sizes = re.search(r"should be of size (\d+) but has size (\d+)", str(error))
        told = f" ({sizes[2]} bytes of {sizes[1]})" if sizes else ""
        return (
            f"a file of {self.repo} came in another size than {self._hub} says{told}; start again, and see "
            "what proxy or mirror answers in its place"
        )

    def _disk(self, error: OSError) -> str | None:
        place = error.filename or self._cache
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"the disk of {self._cache} is full; make room, or set HF_HOME to a folder on a larger disk"
            )
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return f"{place} cannot be written: {os.strerror(error.errno)}; set HF_HOME to a folder that can"
        return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it comes from, the innermost first: the hub's library wraps what matters."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    yield from reversed(found)
