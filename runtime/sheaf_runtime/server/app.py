"""The ASGI application, put together from its routes."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from sheaf_runtime.server.adapters import adapter_routes
from sheaf_runtime.server.completions import completion_routes
from sheaf_runtime.server.edge import App, Edge
from sheaf_runtime.server.embeddings import embedding_routes
from sheaf_runtime.server.errors import install_error_handlers
from sheaf_runtime.server.invocations import invocation_routes
from sheaf_runtime.server.routes import cache_routes, model_routes, probe_routes, tokenizer_routes
from sheaf_runtime.server.scoring import scoring_routes
from sheaf_runtime.server.service import Service
from sheaf_runtime.version import __version__


def create_app(service: Service) -> App:
    app = FastAPI(
        title="Sheaf",
        version=__version__,
        description="OpenAI-compatible LLM serving",
        redirect_slashes=False,
    )
    app.state.context = lambda: service.max_model_len or 0  # for ``JsonRequest``
    install_error_handlers(app)
    for routes in (
        completion_routes,
        embedding_routes,
        scoring_routes,
        model_routes,
        adapter_routes,
        tokenizer_routes,
        cache_routes,
        probe_routes,
    ):
        app.include_router(routes(service))
    app.include_router(invocation_routes(service, app))
    edge = Edge(app, service.lifecycle, service.server_config, service.bodies, service.traces)
    origins = service.server_config.allowed_origins
    if not origins:
        return edge
    # Outermost: a browser's preflight brings no key.
    return CORSMiddleware(
        edge,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["X-Request-Id", "Retry-After"],
    )
