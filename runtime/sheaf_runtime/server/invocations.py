"""``/ping`` and ``/invocations``: the two routes that SageMaker knows."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response

from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.json_route import JsonRoute
from sheaf_runtime.server.lifecycle import Phase
from sheaf_runtime.server.service import Service

# What a body must have for a route to be meant; the first that fits.
GENERATES = (
    ({"messages"}, "/v1/chat/completions"),
    ({"prompt"}, "/v1/completions"),
    ({"input"}, "/v1/responses"),
)
POOLS = (
    ({"input"}, "/v1/embeddings"),
    ({"messages"}, "/v1/embeddings"),
    ({"query"}, "/rerank"),
    ({"queries"}, "/score"),
    ({"text_1"}, "/score"),
    ({"data_1"}, "/score"),
)


def invocation_routes(service: Service, app: FastAPI) -> APIRouter:
    router = APIRouter(tags=["operations"], route_class=JsonRoute)

    @router.get("/ping", response_model=None)
    @router.post("/ping", response_model=None)
    async def ping() -> Response:
        """200 only when a request would be served."""
        phase = service.lifecycle.phase
        return Response(status_code=200 if phase is Phase.READY else 503)

    @router.post("/invocations", response_model=None)
    async def invocations(body: dict[str, Any], request: Request) -> Response:
        """Any request: the route is told by its fields."""
        service.admit()
        routes = GENERATES if service.folder.pooling is None else POOLS
        path = next((path for names, path in routes if names <= body.keys()), None)
        if path is None:
            names = ", ".join(dict.fromkeys(name for needed, _ in routes for name in needed))
            raise ApiError(400, f"the body asks for nothing that this model does; it needs one of {names}")
        return _Elsewhere(app, path, await request.body())

    return router


class _Elsewhere(Response):
    """What another route of ``app`` answers to the same request."""

    def __init__(self, app: FastAPI, path: str, body: bytes) -> None:
        super().__init__()
        self._app, self._path, self._body = app, path, body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        unread = True

        async def again() -> Any:
            nonlocal unread
            if unread:
                unread = False
                return {"type": "http.request", "body": self._body, "more_body": False}
            return await receive()

        await self._app.router({**scope, "path": self._path, "raw_path": self._path.encode()}, again, send)
