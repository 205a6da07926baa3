"""Loading and unloading an adapter while others are served, whoever asks for it."""

from __future__ import annotations

import asyncio
import logging

from sheaf_runtime.config import LoraModule
from sheaf_runtime.protocol.messages import LoadAdapter
from sheaf_runtime.server.adapter_names import ServedAdapter, name_problem
from sheaf_runtime.server.client import EngineDeadError
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.service import Service

logger = logging.getLogger(__name__)


async def load_adapter(service: Service, name: str, path: str, *, replace: bool) -> ServedAdapter:
    """Read an adapter from its folder; requests can choose it once this returns.

    Raises ``ApiError``; nothing has changed then.
    """
    async with service.adapter_changes:
        return await _load(service, name, path, replace)


async def unload_adapter(service: Service, name: str) -> bool:
    """False if there is none of this name. Requests that have it finish."""
    async with service.adapter_changes:
        adapter = service.adapters.remove(name)
        if adapter is None:
            return False
        service.client.unload_adapter(adapter.id_)
    logger.info("unloaded the adapter %s", name)
    return True


async def _load(service: Service, name: str, path: str, replace: bool) -> ServedAdapter:
    names, client = service.adapters, service.client
    if names.get(name) is not None and not replace:
        raise ApiError(
            400,
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter "
            "in place, set 'load_inplace' to True.",
            param="lora_name",
        )
    if problem := name_problem(name, service.model_names):
        raise ApiError(400, problem, param="lora_name")
    adapter = names.make(LoraModule(name=name, path=path))
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
        raise ApiError(status, f"{name}: {answer.problem}", param="lora_path")
    if (before := names.put(adapter)) is not None:
        client.unload_adapter(before.id_)
    logger.info("loaded the adapter %s from %s", adapter.name, adapter.path)
    return adapter
