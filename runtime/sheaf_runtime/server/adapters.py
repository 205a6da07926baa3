"""The routes that load and unload adapters while the server runs: vLLM's."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response

from sheaf_runtime.server.adapter_changes import load_adapter, unload_adapter
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.json_route import JsonRoute
from sheaf_runtime.server.schemas import Body
from sheaf_runtime.server.service import Service


class LoadRequest(Body):
    lora_name: str = ""
    lora_path: str = ""
    load_inplace: bool = False
    is_3d_lora_weight: Literal[False] = False


class UnloadRequest(Body):
    lora_name: str = ""
    lora_int_id: int | None = None  # vLLM takes it, and goes by the name


def adapter_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["adapters"], route_class=JsonRoute)

    @router.post("/load_lora_adapter", response_model=None)
    async def load_lora_adapter(body: LoadRequest) -> Response:
        """Read an adapter from its folder; requests can choose it from the answer on."""
        _check_allowed(service)
        if not body.lora_name or not body.lora_path:
            raise ApiError(400, "Both 'lora_name' and 'lora_path' must be provided.")
        await load_adapter(service, body.lora_name, body.lora_path, replace=body.load_inplace)
        return _success(body.lora_name, "added")

    @router.post("/unload_lora_adapter", response_model=None)
    async def unload_lora_adapter(body: UnloadRequest) -> Response:
        """New requests get 404; those that have it finish."""
        _check_allowed(service)
        name = body.lora_name
        if not name:
            raise ApiError(400, "'lora_name' needs to be provided to unload a LoRA adapter.")
        if not await unload_adapter(service, name):
            raise ApiError(404, f"The lora adapter '{name}' cannot be found.", param="lora_name")
        return _success(name, "removed")

    return router


def _check_allowed(service: Service) -> None:
    if not service.server_config.allow_runtime_lora_updating:
        raise ApiError(
            404,
            "adapters are not loaded and unloaded while this server runs; start it with --enable-lora "
            "--allow-runtime-lora-updating, or name them with --lora-modules",
        )
    service.admit()


def _success(name: str, what: str) -> Response:
    return Response(f"Success: LoRA adapter '{name}' {what} successfully.", media_type="text/plain")
