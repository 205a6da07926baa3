"""The ASGI application, put together from its routes."""

from __future__ import annotations

from fastapi import FastAPI

from sheaf_runtime.server.completions import completion_routes
from sheaf_runtime.server.edge import App, Edge
from sheaf_runtime.server.errors import install_error_handlers
from sheaf_runtime.server.routes import model_routes, probe_routes, tokenizer_routes
from sheaf_runtime.server.service import Service
from sheaf_runtime.version import __version__


def create_app(service: Service) -> App:
    app = FastAPI(title="Sheaf", version=__version__, description="OpenAI-compatible LLM serving")
    install_error_handlers(app)
    for routes in (completion_routes, model_routes, tokenizer_routes, probe_routes):
        app.include_router(routes(service))
    return Edge(app, service.lifecycle, service.server_config.api_key)
