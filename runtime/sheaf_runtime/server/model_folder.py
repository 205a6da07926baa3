"""What the API process reads from a model folder: tokenizer, chat template, default sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from sheaf_runtime.config import EngineConfig, ServerConfig, generation_folder
from sheaf_runtime.gguf.errors import GGUFError
from sheaf_runtime.gguf.folder import find_gguf, open_folder
from sheaf_runtime.parsers import guess_tool_parser
from sheaf_runtime.pooling.folder import read_pooling
from sheaf_runtime.pooling.spec import PoolingError, PoolingSpec
from sheaf_runtime.protocol.limits import BOUNDS
from sheaf_runtime.text import ChatTemplate, ChatTemplateError, Tokenizer, TokenizerError
from sheaf_runtime.text.tokenizer import read_json, read_text


class ModelFolderError(ValueError):
    """The folder cannot be served; the message says what to change."""


@dataclass(frozen=True)
class SamplingDefaults:
    """Where a request says nothing, ``generation_config.json`` does. No answer is longer than
    ``max_new_tokens``, whatever its request says."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int | None = None

    @classmethod
    def read(
        cls, folder: Traversable, source: str = "auto", overrides: Mapping[str, Any] | None = None
    ) -> SamplingDefaults:
        """``source`` and ``overrides`` are ``--generation-config`` and ``--override-generation-config``.

        Raises ``ModelFolderError`` for values that no request could be sampled with."""
        chosen = generation_folder(folder, source)
        path = None if chosen is None else chosen / "generation_config.json"
        if path is not None and source != "auto" and not path.is_file():
            raise ModelFolderError(
                f"--generation-config {source}: {path} does not exist; name a folder that has it"
            )
        config = {} if path is None else read_json(path)
        given = cls.known(config, str(path))
        return cls(**(given | cls.known(overrides or {}, "--override-generation-config")))

    @classmethod
    def known(cls, config: Mapping[str, Any], place: str) -> dict[str, Any]:
        """Those keys that are read. Raises ``ModelFolderError``."""
        given = {name: config[name] for name in cls.__dataclass_fields__ if config.get(name) is not None}
        for name, value in given.items():
            if problem := BOUNDS["max_tokens" if name == "max_new_tokens" else name].problem(value):
                raise ModelFolderError(f"{place}: {name} {problem}")
        return given


@dataclass(frozen=True)
class ModelFolder:
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    pooling: PoolingSpec | None = None

    @cached_property
    def tool_parser(self) -> str | None:
        """The name of the parser that reads the calls of models with this chat template, if it tells."""
        return None if self.chat_template is None else guess_tool_parser(self.chat_template.source)


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
            f"{path} is not a folder; MODEL must be a Hugging Face model folder, a GGUF file, or the name of "
            "a model on the hub, as org/model"
        )
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ModelFolderError(f"{folder / name} is missing; MODEL must be a Hugging Face model folder")


def load_folder(engine: EngineConfig, server: ServerConfig) -> ModelFolder:
    """``engine.model``, as the flags of both say.

    Raises ``ModelFolderError``.
    """
    path = engine.model
    try:
        folder = open_folder(path)
        tokenizer = Tokenizer.from_folder(folder)
        _ = tokenizer.byte_ids, tokenizer.longest_token  # computed here, not at the first request
        template: Any
        if server.chat_template is None:
            template = ChatTemplate.from_folder(folder, tokenizer.special_tokens)
        else:
            template = ChatTemplate(_template_source(server.chat_template), tokenizer.special_tokens)
        raw = read_json(folder / "config.json") | engine.hf_overrides
        pooling = read_pooling(folder, raw, engine.runner, engine.convert, engine.pooler_config)
        defaults = SamplingDefaults.read(folder, engine.generation_config, server.override_generation_config)
        return ModelFolder(tokenizer, template, defaults, pooling)
    except (TokenizerError, ChatTemplateError, PoolingError, GGUFError) as error:
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
