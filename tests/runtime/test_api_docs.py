"""docs/api.md lists what the code has: every route, every field, every bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sheaf_runtime.config import EngineConfig, ServerConfig
from sheaf_runtime.protocol.limits import BOUNDS
from sheaf_runtime.server.app import create_app
from sheaf_runtime.server.pooling_schemas import (
    EmbeddingRequest,
    PoolingBody,
    RerankRequest,
    ScoreRequest,
)
from sheaf_runtime.server.schemas import ChatCompletionRequest, CompletionRequest, Generate
from sheaf_runtime.server.service import Service
from sheaf_runtime.server.unsupported import HARMLESS, REPLACED, UNSUPPORTED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def rows(section: str) -> dict[str, str]:
    """First cell, without its ticks, to the rest of the row."""
    text = PAGE.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    lines = [line.strip("| \n") for line in text.splitlines() if line.startswith("| `")]
    return {line.partition(" | ")[0].strip("`"): line.partition(" | ")[2] for line in lines}


def test_every_route_is_listed() -> None:
    app: Any = create_app(Service(EngineConfig(model="m"), ServerConfig(allowed_origins=())))
    schema = app._app.openapi()
    routes = {f"{method.upper()} {path}" for path, methods in schema["paths"].items() for method in methods}
    assert set(rows("Routes")) == routes


def test_every_field_is_listed_with_its_bounds() -> None:
    shared, chat, completions = (
        set(kind.model_fields) for kind in (Generate, ChatCompletionRequest, CompletionRequest)
    )
    assert set(rows("Fields of both endpoints")) == shared
    assert set(rows("Fields of /v1/completions")) == completions - shared
    assert set(rows("Fields of /v1/chat/completions")) == chat - shared
    pooling, embeddings, rerank, score = (
        set(kind.model_fields) for kind in (PoolingBody, EmbeddingRequest, RerankRequest, ScoreRequest)
    )
    assert set(rows("Fields of /v1/embeddings, /rerank and /score")) == pooling
    assert set(rows("Fields of /v1/embeddings")) == embeddings - pooling
    assert set(rows("Fields of /rerank")) == rerank - pooling
    assert set(rows("Fields of /score")) == score - pooling
    for section in (
        "Fields of /v1/embeddings, /rerank and /score",
        "Fields of /v1/embeddings",
        "Fields of /rerank",
        "Fields of both endpoints",
        "Fields of /v1/completions",
        "Fields of /v1/chat/completions",
    ):
        for name, text in rows(section).items():
            if name in BOUNDS and not (name == "logprobs" and "chat" in section):
                assert BOUNDS[name].words in text, name


def test_what_is_not_supported_is_listed() -> None:
    text = PAGE.read_text().partition("\n## Not supported\n")[2]
    for name in UNSUPPORTED.keys() | REPLACED.keys() | HARMLESS:
        assert f"`{name}`" in text, name
