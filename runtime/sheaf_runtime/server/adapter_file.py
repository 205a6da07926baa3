"""``--adapters-file``: the adapters that a file names are had, again and again compared with what is here.

Whoever may write the file decides, so no route has to be open for it. The file outlives the process: after a
restart the same adapters are loaded again, before the server is ready.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from sheaf_runtime.server.adapter_changes import load_adapter, unload_adapter
from sheaf_runtime.server.adapter_states import AdapterState
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.service import Service

logger = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
FIRST_SECONDS = 60.0  # a folder that hangs holds the model up no longer
RETRY_SECONDS, RETRY_MOST_SECONDS = 5.0, 300.0
MAX_MESSAGE = 160  # characters, as they become a label in the metrics


def read_wanted(text: str) -> dict[str, str]:
    """Names and folders from a JSON object; nothing from an empty text. Raises ``ValueError``."""
    found = json.loads(text) if text.strip() else {}
    if not isinstance(found, dict) or not all(isinstance(path, str) for path in found.values()):
        raise ValueError('must be a JSON object, such as {"support": "/adapters/support"}')
    return found


class AdapterFile:
    """Changes only the adapters that it loaded itself. ``states`` has one for each name that was tried."""

    def __init__(self, service: Service, path: Path, clock: Callable[[], float]) -> None:
        self._service, self._path, self._clock = service, path, clock
        self._loads: dict[str, int] = {}  # name → id of our load of it
        self._problem: str | None = None  # of the file, said once
        self._wanted: dict[str, str] = {}
        self.states: dict[str, AdapterState] = {}

    async def follow(self, on_first: Callable[[], None], pause: Callable[[float], Awaitable[None]]) -> None:
        """Forever. ``on_first`` is called once all entries have been tried."""
        first = asyncio.create_task(self.step())
        try:
            await asyncio.wait({first}, timeout=FIRST_SECONDS)
            on_first()
            await first
        finally:
            first.cancel()
        while True:
            await pause(LOOK_SECONDS)
            await self.step()

    async def step(self) -> None:
        """Compare once, and do what is missing."""
        wanted = self._read()
        for name in [name for name in self.states if name not in wanted]:
            del self.states[name]
            if self._has(name):
                await unload_adapter(self._service, name)
            self._loads.pop(name, None)
        for name, path in wanted.items():
            if self._is_due(name, path):
                self.states[name] = await self._try(name, path)

    def _read(self) -> dict[str, str]:
        """What the file says; while it cannot be read, what it said before."""
        try:
            self._wanted = read_wanted(self._path.read_text("utf-8"))
            self._problem = None
        except (OSError, ValueError) as error:
            if str(error) != self._problem:
                self._problem = str(error)
                logger.warning("--adapters-file %s: %s", self._path, error)
        return self._wanted

    def _has(self, name: str) -> bool:
        served = self._service.adapters.get(name)
        return served is not None and served.id_ == self._loads.get(name)

    def _is_due(self, name: str, path: str) -> bool:
        known = self.states.get(name)
        if known is None or known.path != path:
            return True
        return not self._has(name) if known.state == "ready" else self._clock() >= known.due

    async def _try(self, name: str, path: str) -> AdapterState:
        try:
            adapter = await load_adapter(self._service, name, path, replace=self._has(name))
        except ApiError as error:
            return self._failed(name, path, str(error.detail))
        self._loads[name] = adapter.id_
        return AdapterState(path, "ready")

    def _failed(self, name: str, path: str, message: str) -> AdapterState:
        """The load before, of another folder, serves on."""
        known = self.states.get(name)
        tries = known.tries + 1 if known is not None and known.path == path else 1
        wait = min(RETRY_SECONDS * 2 ** min(tries - 1, 10), RETRY_MOST_SECONDS)
        if tries == 1:
            logger.warning("--adapters-file %s: %s", self._path, message)
        words = " ".join(message.split())[:MAX_MESSAGE]
        return AdapterState(path, "failed", words, tries, self._clock() + wait)
