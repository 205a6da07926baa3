"""A GGUF file as the Hugging Face folder that everything else reads: its header as JSON files, in memory, so
that nothing is written and nothing can stay behind. The weights stay where they are."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache, lru_cache, partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sheaf_runtime.gguf.errors import MAGIC, GGUFError

if TYPE_CHECKING:
    from sheaf_runtime.gguf.reader import GGUFFile


def find_gguf(model: str | Path) -> Path | None:
    """The file that MODEL means: itself, or the only one of a folder without ``config.json``.

    Raises ``GGUFError`` if there are several to choose from.
    """
    path = Path(model)
    if path.is_file():
        with path.open("rb") as file:
            return path if file.read(4) == MAGIC else None
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(p for p in path.glob("*.gguf") if not p.name.startswith("."))
    if len(found) > 1:
        raise GGUFError(f"{path} has {len(found)} GGUF files; name one of them, as {found[0]}")
    return found[0] if found else None


def open_folder(model: str | Path) -> Path | HeaderFolder:
    """``model`` itself if it is no GGUF file. Raises ``GGUFError``."""
    path = find_gguf(model)
    if path is None:
        return Path(model)
    about = path.stat()
    return _read(path, about.st_mtime_ns, about.st_size)


class HeaderFolder(Traversable):
    """The folder, or, with a name ``inside`` of it, one of its files, each written when it is read.
    ``file`` is the GGUF file."""

    def __init__(self, file: GGUFFile, files: Mapping[str, Callable[[], str]], inside: str = "") -> None:
        self.file = file
        self.path = file.path
        self._files = files
        self._inside = inside

    def __str__(self) -> str:
        return f"{self.path}/{self._inside}" if self._inside else str(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeaderFolder) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @property
    def name(self) -> str:
        return self._inside.rpartition("/")[2] or self.path.name

    def joinpath(self, *names: str | os.PathLike[str]) -> HeaderFolder:
        inside = "/".join(filter(None, [self._inside, *map(str, names)]))
        return HeaderFolder(self.file, self._files, inside)

    def __truediv__(self, name: str | os.PathLike[str]) -> HeaderFolder:
        return self.joinpath(name)

    def is_dir(self) -> bool:
        return not self._inside

    def is_file(self) -> bool:
        return self._inside in self._files

    def iterdir(self) -> Iterator[HeaderFolder]:
        yield from (self / name for name in self._files if self.is_dir())

    def read_bytes(self) -> bytes:
        if not self.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return self._files[self._inside]().encode()

    def read_text(self, encoding: str | None = None) -> str:
        return self.read_bytes().decode()

    def open(self, mode: str = "r", *args: Any, **options: Any) -> IO[Any]:
        return io.BytesIO(self.read_bytes()) if "b" in mode else io.StringIO(self.read_text())


@lru_cache(maxsize=1)  # in each process several read it, one after the other
def _read(path: Path, _modified: int, _size: int) -> HeaderFolder:
    # Only here: they need numpy, which the API process of any other model goes without.
    from sheaf_runtime.gguf.config import generation_config, model_config
    from sheaf_runtime.gguf.reader import GGUFFile
    from sheaf_runtime.gguf.tokenizer import tokenizer_config, tokenizer_json

    file = GGUFFile(path)
    if "token_embd.weight" not in file.tensors:
        raise GGUFError(f"{path} has no token_embd.weight: it is no language model")
    contents = {
        "config.json": model_config(file),
        "generation_config.json": generation_config(file),
        "tokenizer_config.json": tokenizer_config(file),
    }
    files: dict[str, Callable[[], str]] = {
        name: partial(json.dumps, content, ensure_ascii=False) for name, content in contents.items()
    }
    # Only when it is read: it takes half a second to make, and the engine does without it.
    return HeaderFolder(file, files | {"tokenizer.json": cache(partial(tokenizer_json, file))})
