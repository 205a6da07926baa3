"""The routes that load and unload adapters while the server runs: vLLM's."""

from __future__ import annotations

import asyncio
import logging
from typing import Literal

from fastapi import APIRouter, Response

from sheaf_runtime.config import LoraModule
from sheaf_runtime.protocol.messages import LoadAdapter
from sheaf_runtime.server.adapter_names import name_problem
from sheaf_runtime.server.client import EngineDeadError
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.json_route import JsonRoute
from sheaf_runtime.server.schemas import Body
from sheaf_runtime.server.service import Service

logger = logging.getLogger(__name__)


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
    changes = asyncio.Lock()  # a name is looked up before an adapter is read, and written behind that

    @router.post("/load_lora_adapter", response_model=None)
    async def load_lora_adapter(body: LoadRequest) -> Response:
        """Read an adapter from its folder; requests can choose it from the answer on."""
        _check_allowed(service)
        if not body.lora_name or not body.lora_path:
            raise ApiError(400, "Both 'lora_name' and 'lora_path' must be provided.")
        async with changes:
            await _load(service, body)
        return _success(body.lora_name, "added")

    @router.post("/unload_lora_adapter", response_model=None)
    async def unload_lora_adapter(body: UnloadRequest) -> Response:
        """New requests get 404; those that have it finish."""
        _check_allowed(service)
        name = body.lora_name
        if not name:
            raise ApiError(400, "'lora_name' needs to be provided to unload a LoRA adapter.")
        async with changes:
            adapter = service.adapters.remove(name)
            if adapter is None:
                raise ApiError(404, f"The lora adapter '{name}' cannot be found.", param="lora_name")
            service.client.unload_adapter(adapter.id_)
        logger.info("unloaded the adapter %s", name)
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


async def _load(service: Service, body: LoadRequest) -> None:
    """Raises ``ApiError``; nothing has changed then."""
    names, client = service.adapters, service.client
    if names.get(body.lora_name) is not None and not body.load_inplace:
        raise ApiError(
            400,
            f"The lora adapter '{body.lora_name}' has already been loaded. If you want to load the adapter "
            "in place, set 'load_inplace' to True.",
            param="lora_name",
        )
    if problem := name_problem(body.lora_name, service.model_names):
        raise ApiError(400, problem, param="lora_name")
    adapter = names.make(LoraModule(name=body.lora_name, path=body.lora_path))
    message = LoadAdapter(adapter=adapter.id_, name=adapter.name, path=adapter.path)
    try:
        answer = await client.load_adapter(message)
    except EngineDeadError as error:
        raise ApiError(500, str(error), code="engine_dead") from error
    except asyncio.CancelledError:
        client.unload_adapter(adapter.id_)
        raise
    if answer.problem is not None:
        status = 404 if answer.missing else 400
        raise ApiError(status, f"{body.lora_name}: {answer.problem}", param="lora_path")
    if (before := names.put(adapter)) is not None:
        client.unload_adapter(before.id_)
    logger.info("loaded the adapter %s from %s", adapter.name, adapter.path)


def _success(name: str, what: str) -> Response:
    return Response(f"Success: LoRA adapter '{name}' {what} successfully.", media_type="text/plain")
