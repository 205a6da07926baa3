"""Everything but generation: models, tokenizer, probes, version, metrics."""

from __future__ import annotations

import time
from typing import Any

import orjson
from fastapi import APIRouter, Response

from sheaf_runtime.protocol.limits import refuse_ids
from sheaf_runtime.server.errors import ApiError, error_response
from sheaf_runtime.server.exposition import CONTENT_TYPE
from sheaf_runtime.server.json_route import JsonRoute
from sheaf_runtime.server.lifecycle import Phase
from sheaf_runtime.server.prompts import MOST_CUT, encode, off_loop, render_chat
from sheaf_runtime.server.sampling import refuse
from sheaf_runtime.server.schemas import DetokenizeRequest, TokenizeRequest
from sheaf_runtime.server.service import Service
from sheaf_runtime.version import __version__


def model_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["models"])
    created = int(time.time())

    def row(name: str) -> dict[str, Any]:
        adapter = service.adapters.get(name)
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "sheaf",
            "root": service.root if adapter is None else adapter.path,
            "parent": None if adapter is None else adapter.parent,
            "max_model_len": service.max_model_len,
        }

    @router.get("/models", response_model=None)
    async def list_models() -> Response:
        """The names this server answers to: the model's, and those of its adapters."""
        names = (*service.model_names, *(adapter.name for adapter in service.adapters))
        return _json({"object": "list", "data": [row(name) for name in names]})

    @router.get("/models/{name:path}", response_model=None)
    async def get_model(name: str) -> Response:
        """One of them."""
        return _json(row(service.check_model(name)))

    return router


def tokenizer_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["tokenizer"], route_class=JsonRoute)

    @router.post("/tokenize", response_model=None)
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a text, or of a chat as the model would see it; also of more than the context holds,
        which is what people count tokens for."""
        service.check_model(body.model)
        special = body.add_special_tokens
        if body.messages is not None:
            text, param = await render_chat(service, body), "messages"
        else:
            text, param, special = body.prompt or "", "prompt", special is not False
        keep = 0 if len(text) <= MOST_CUT else None
        ids = await encode(service, text, add_special_tokens=bool(special), param=param, keep=keep)
        answer: dict[str, Any] = {
            "count": len(ids),
            "max_model_len": service.max_model_len,
            "tokens": ids,
            "token_strs": None,
        }
        if body.return_token_strs:
            token = service.folder.tokenizer.token
            strs = await off_loop(service, len(ids), lambda: [token(id_) for id_ in ids])
            answer["token_strs"] = strs
        return _json(answer)

    @router.post("/detokenize", response_model=None)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids, special tokens included."""
        service.check_model(body.model)
        tokenizer, info = service.folder.tokenizer, service.client.info
        size = max(tokenizer.vocab_size, info.vocab_size if info else 0)  # a model's may be padded
        if body.tokens:
            refuse(refuse_ids("tokens", (min(body.tokens), max(body.tokens)), size))
        text = await off_loop(
            service, len(body.tokens), lambda: tokenizer.decode(body.tokens, skip_special_tokens=False)
        )
        return _json({"prompt": text})

    return router


def cache_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.post("/reset_prefix_cache", response_model=None)
    async def reset_prefix_cache() -> Response:
        """Forget what earlier requests computed; those that run go on."""
        service.admit()
        service.client.reset_prefix_cache()
        return Response(status_code=200)

    return router


def probe_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/health", response_model=None)
    async def health() -> Response:
        """200 while this process can do its work or is still loading; restart it when this fails."""
        if service.lifecycle.phase is Phase.FAILED:
            return error_response(ApiError(503, str(service.lifecycle.failure), code="engine_dead"))
        return _json({"status": service.lifecycle.phase.value})

    @router.get("/ready", response_model=None)
    async def ready() -> Response:
        """200 only when a request would be served; send traffic elsewhere when this fails."""
        phase = service.lifecycle.phase
        return _json({"status": phase.value}, 200 if phase is Phase.READY else 503)

    @router.get("/version", response_model=None)
    async def version() -> Response:
        return _json({"version": __version__})

    @router.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Prometheus text format."""
        return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE})

    return router


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")
