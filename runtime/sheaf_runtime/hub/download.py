"""The download, through huggingface_hub into its cache."""

from __future__ import annotations

import glob
import hashlib
import logging
import re
import shutil
import sys
import time
from collections.abc import Collection, Container, Iterable
from concurrent.futures import ThreadPoolExecutor
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
from huggingface_hub.errors import CachedRepoTreeNotFoundError, HfHubHTTPError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils.tqdm import tqdm

from sheaf_runtime.hub.errors import HubError
from sheaf_runtime.hub.files import SMALL, chosen_gguf, needed_files
from sheaf_runtime.hub.name import Order
from sheaf_runtime.hub.progress import Lines, Silence
from sheaf_runtime.hub.weights import INDEX, MissingShardsError
from sheaf_runtime.hub.words import Words
from sheaf_runtime.version import __version__

logger = logging.getLogger(__name__)
PAUSES = (1, 2, 4, 8)  # seconds
HASHING = 4  # files at a time
Blob = tuple[str, int]  # a file's name in the cache, and when it was written
MODULES = "[0-9]*_*/config.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_VISIBLE = re.compile(r"[!-~]+")  # what a header can say; the library's complaint would show the token


class Listing(msgspec.Struct, frozen=True):
    """The files of a commit with their sizes; not ``whole`` if the cache alone tells, which may hold some."""

    sizes: dict[str, int]
    whole: bool


def download(order: Order) -> str:
    """The folder, or the GGUF file, in the cache; all of it is of the one commit that ``revision`` is now.

    What is in the cache is not fetched again, and where the hub cannot be reached it may be enough.
    Raises ``HubError``.
    """
    order = msgspec.structs.replace(order, token=(order.token or "").strip() or None)
    try:
        token = order.token or get_token()
    except OSError as error:
        raise HubError(
            f"HF_HOME {constants.HF_HOME} cannot be read: {error.strerror} ({error.filename}); set another"
        ) from error
    if token and not _VISIBLE.fullmatch(token):
        raise HubError(
            "the token has blanks or other odd characters inside; set HF_TOKEN (or --hf-token) to it alone"
        )
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
        before = _blobs(self._repo)
        folder = self._fetch(revision, [*SMALL, MODULES], Silence)
        listing = _listing(self._repo, revision, folder)
        file, wanted = self._choose(listing, folder)
        missing = _missing(wanted, folder, listing)
        if missing and not offline:
            self._fetch_weights(revision, folder, missing, listing)
        if missing := _missing(wanted, folder, listing):
            raise HubError(self._words.incomplete(missing))
        self._check_hashes(folder, wanted, before)
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

    def _check_hashes(self, folder: Path, wanted: Iterable[str], before: Container[Blob]) -> None:
        """Of what has come now: large files are kept under the SHA-256 that the hub says they have, which its
        library does not look at. Raises ``HubError``, and has others fetched again the next time."""
        new = [path for path in map(folder.joinpath, wanted) if _blob(path) not in before]
        new = [path for path in new if _SHA256.fullmatch(path.resolve().name)]
        with ThreadPoolExecutor(HASHING) as threads:
            hashes = threads.map(_sha256, new)
        wrong = [path for path, sha256 in zip(new, hashes, strict=True) if path.resolve().name != sha256]
        if wrong:
            _clear(wrong)
            raise HubError(self._words.altered([path.relative_to(folder).as_posix() for path in wrong]))

    def _fetch_weights(
        self, revision: ResolvedRevision, folder: Path, missing: list[str], listing: Listing
    ) -> None:
        size = sum(listing.sizes[name] for name in missing)
        free = _free(Path(constants.HF_HUB_CACHE))
        if size > free:
            raise HubError(self._words.no_room(size, free))
        _clear(folder / name for name in missing)
        logger.info(
            "downloading %s at commit %s to %s: %d files, %.2f GB",
            self._repo,
            revision.resolved,
            constants.HF_HUB_CACHE,
            len(missing),
            size / 1e9,
        )
        for pause in (*PAUSES, None):
            try:
                self._fetch(revision, map(glob.escape, missing), None if sys.stderr.isatty() else Lines)
                return
            except Exception as error:
                words = self._words.of(error, missing)
                # The library waits for a hub that says so, but ends with a store's first 503.
                busy = isinstance(error, HfHubHTTPError) and error.response.status_code >= 500
                if pause is None or not busy:
                    raise HubError(words) from error
                logger.warning("%s; trying again in %d s", words, pause)
                time.sleep(pause)

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


def _missing(wanted: Iterable[str], folder: Path, listing: Listing) -> list[str]:
    """A file of another size than the listing's, from a copy that broke off, is missing too."""

    def there(name: str) -> bool:
        path = folder / name
        return path.is_file() and path.stat().st_size == listing.sizes[name]

    return [name for name in wanted if not there(name)]


def _blobs(repo: str) -> frozenset[Blob]:
    """What the cache has of it, of whatever commit."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    return frozenset(map(_blob, folder.glob("*")))


def _blob(path: Path) -> Blob:
    real = path.resolve()
    return real.name, real.stat().st_mtime_ns


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clear(paths: Iterable[Path]) -> None:
    """The library takes what is there for whole: both the link of a snapshot and what it leads to."""
    for path in paths:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _free(folder: Path) -> int:
    """Bytes of the disk that ``folder`` is on, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
