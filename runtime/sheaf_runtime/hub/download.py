"""The download, through huggingface_hub into its cache."""

from __future__ import annotations

import glob
import logging
import shutil
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

import msgspec
from huggingface_hub import (
    HfApi,
    ResolvedRevision,
    constants,
    get_cached_repo_tree,
    get_token,
    snapshot_download,
)
from huggingface_hub.errors import CachedRepoTreeNotFoundError
from huggingface_hub.utils.tqdm import tqdm

from sheaf_runtime.hub.errors import HubError
from sheaf_runtime.hub.files import SMALL, chosen_gguf, needed_files
from sheaf_runtime.hub.name import Order
from sheaf_runtime.hub.progress import Lines, Silence
from sheaf_runtime.hub.weights import INDEX, MissingShardsError
from sheaf_runtime.hub.words import Words
from sheaf_runtime.version import __version__

logger = logging.getLogger(__name__)
MODULES = "[0-9]*_*/config.json"


class Listing(msgspec.Struct, frozen=True):
    """The files of a commit with their sizes; not ``whole`` if the cache alone tells, which may hold some."""

    sizes: dict[str, int]
    whole: bool


def download(order: Order) -> str:
    """The folder, or the GGUF file, in the cache; all of it is of the one commit that ``revision`` is now.

    What is in the cache is not fetched again, and where the hub cannot be reached it may be enough.
    Raises ``HubError``.
    """
    try:
        token = order.token or get_token()
    except OSError as error:
        raise HubError(
            f"HF_HOME {constants.HF_HOME} cannot be read: {error.strerror} ({error.filename}); set another"
        ) from error
    words = Words(order.model.repo, order.revision, has_token=bool(token))
    try:
        return str(_Download(order, words).run())
    except HubError:
        raise
    except Exception as error:
        raise HubError(words.of(error)) from error


class _Download:
    def __init__(self, order: Order, words: Words) -> None:
        self._order = order
        self._words = words
        self._repo = order.model.repo

    def run(self) -> Path:
        api = HfApi(token=self._order.token, library_name="sheaf", library_version=__version__)
        offline = constants.is_offline_mode()
        revision = api.resolve_revision(self._repo, revision=self._order.revision, local_files_only=offline)
        folder = self._fetch(revision, [*SMALL, MODULES], Silence)
        listing = _listing(self._repo, revision, folder)
        file, wanted = self._choose(listing, folder)
        missing = _missing(wanted, folder)
        if missing and not offline:
            self._fetch_weights(revision, missing, listing)
        if missing := _missing(wanted, folder):
            raise HubError(self._words.incomplete(missing))
        logger.info("%s at commit %s is in %s", self._repo, revision.resolved, folder)
        return folder if file is None else folder / file

    def _choose(self, listing: Listing, folder: Path) -> tuple[str | None, Collection[str]]:
        """The GGUF file, if it is one, and all that has to be there."""
        if (file := chosen_gguf(self._repo, listing.sizes, self._order.model.gguf)) is not None:
            return file, [file]
        index = (folder / INDEX).read_text("utf-8") if INDEX in listing.sizes else None
        try:
            return None, needed_files(self._repo, listing.sizes, index)
        except MissingShardsError as error:
            if listing.whole:
                raise HubError(f"{error}: the repository itself is incomplete") from error
            raise HubError(self._words.incomplete(error.missing)) from error

    def _fetch_weights(self, revision: ResolvedRevision, missing: list[str], listing: Listing) -> None:
        size = sum(listing.sizes[name] for name in missing)
        free = _free(Path(constants.HF_HUB_CACHE))
        if size > free:
            raise HubError(self._words.no_room(size, free))
        logger.info(
            "downloading %s at commit %s to %s: %d files, %.2f GB",
            self._repo,
            revision.resolved,
            constants.HF_HUB_CACHE,
            len(missing),
            size / 1e9,
        )
        try:
            self._fetch(revision, map(glob.escape, missing), None if sys.stderr.isatty() else Lines)
        except Exception as error:
            raise HubError(self._words.of(error, missing)) from error

    def _fetch(self, revision: ResolvedRevision, patterns: Iterable[str], bars: type[tqdm] | None) -> Path:
        return Path(
            snapshot_download(
                self._repo,
                revision=revision,
                allow_patterns=list(patterns),
                token=self._order.token,
                library_name="sheaf",
                library_version=__version__,
                tqdm_class=bars,
            )
        )


def _listing(repo: str, revision: ResolvedRevision, folder: Path) -> Listing:
    try:
        files = get_cached_repo_tree(repo, revision=revision)
        return Listing({file.path: file.size for file in files}, True)
    except CachedRepoTreeNotFoundError:  # filled by an older library, and the hub is out of reach
        found = [path for path in folder.rglob("*") if path.is_file()]
        return Listing({path.relative_to(folder).as_posix(): path.stat().st_size for path in found}, False)


def _missing(wanted: Iterable[str], folder: Path) -> list[str]:
    return [name for name in wanted if not (folder / name).is_file()]


def _free(folder: Path) -> int:
    """Bytes of the disk that ``folder`` is on, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
