"""A GGUF file as the Hugging Face folder that everything else reads: its header as JSON files, and a link to
the file itself, where the weights stay."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sheaf_runtime.gguf.errors import MAGIC, GGUFError

WEIGHTS = "model.gguf"


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


@contextmanager
def model_folder(model: str) -> Iterator[str]:
    """``model`` itself if it is no GGUF file, else a folder that lasts as long as it is needed.

    Raises ``GGUFError``.
    """
    path = find_gguf(model)
    if path is None:
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="sheaf-gguf-") as folder:
        write_folder(path, Path(folder))
        yield folder


def write_folder(path: Path, folder: Path) -> None:
    """Raises ``GGUFError``."""
    # Only here: they need numpy, which the API process of any other model goes without.
    from sheaf_runtime.gguf.config import generation_config, model_config
    from sheaf_runtime.gguf.reader import GGUFFile
    from sheaf_runtime.gguf.tokenizer import tokenizer_files

    file = GGUFFile(path)
    if "token_embd.weight" not in file.tensors:
        raise GGUFError(f"{path} has no token_embd.weight: it is no language model")
    tokenizer, tokenizer_config = tokenizer_files(file)
    (folder / "tokenizer.json").write_text(tokenizer, "utf-8")
    for name, content in (
        ("config.json", model_config(file)),
        ("generation_config.json", generation_config(file)),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")
    (folder / WEIGHTS).symlink_to(path.resolve())
