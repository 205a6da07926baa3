"""What the API process reads from a model folder: tokenizer, chat template, default sampling."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sheaf_runtime.gguf.folder import find_gguf
from sheaf_runtime.gguf.reader import GGUFError
from sheaf_runtime.text import ChatTemplate, ChatTemplateError, Tokenizer, TokenizerError
from sheaf_runtime.text.tokenizer import read_json, read_text

logger = logging.getLogger(__name__)


class ModelFolderError(ValueError):
    """The folder cannot be served; the message says what to change."""


_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("a finite number, 0 or more", lambda value: 0 <= value < math.inf),
    "top_p": ("a number above 0 and at most 1", lambda value: 0 < value <= 1),
    "top_k": ("a whole number, -1 or more", lambda value: isinstance(value, int) and value >= -1),
}


@dataclass(frozen=True)
class SamplingDefaults:
    """Where a request says nothing, ``generation_config.json`` does."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @classmethod
    def from_folder(cls, folder: Path) -> SamplingDefaults:
        """Raises ``ModelFolderError`` for values that no request could be sampled with."""
        config = read_json(folder / "generation_config.json")
        for name, neutral in (("repetition_penalty", 1.0), ("min_p", 0.0)):
            value = config.get(name)
            if value not in (None, neutral):
                logger.warning("generation_config.json sets %s=%s, which is not supported yet", name, value)
        given = {name: config[name] for name in _RANGES if config.get(name) is not None}
        for name, value in given.items():
            words, allowed = _RANGES[name]
            if type(value) not in (int, float) or not allowed(value):
                raise ModelFolderError(
                    f"{folder / 'generation_config.json'}: {name} must be {words}, got {value!r}"
                )
        return cls(**given)


@dataclass(frozen=True)
class ModelFolder:
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)


def check_folder(path: str) -> None:
    """Quick checks before anything is started. Raises ``ModelFolderError``."""
    folder = Path(path)
    try:
        if find_gguf(folder) is not None:
            return
    except (GGUFError, OSError) as error:
        raise ModelFolderError(str(error)) from error
    if not folder.is_dir():
        raise ModelFolderError(
            f"{path} is not a folder; MODEL must be a Hugging Face model folder or a GGUF file"
        )
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ModelFolderError(f"{folder / name} is missing; MODEL must be a Hugging Face model folder")


def load_folder(path: str, chat_template: str | None) -> ModelFolder:
    """``chat_template`` replaces the model's own: a file, or the template itself.

    Raises ``ModelFolderError``.
    """
    folder = Path(path)
    try:
        tokenizer = Tokenizer.from_folder(folder)
        _ = tokenizer.byte_ids, tokenizer.longest_token  # computed here, not at the first request
        template: Any
        if chat_template is None:
            template = ChatTemplate.from_folder(folder, tokenizer.special_tokens)
        else:
            template = ChatTemplate(_template_source(chat_template), tokenizer.special_tokens)
        return ModelFolder(tokenizer, template, SamplingDefaults.from_folder(folder))
    except (TokenizerError, ChatTemplateError) as error:
        raise ModelFolderError(str(error)) from error
    except OSError as error:
        raise ModelFolderError(f"{error.filename or path}: {error.strerror}") from error


def _template_source(option: str) -> str:
    if "{" in option or "\n" in option:
        return option
    try:
        return read_text(Path(option))
    except OSError as error:
        raise ModelFolderError(f"--chat-template {option}: {error.strerror}") from error
