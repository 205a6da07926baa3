"""The adapters that requests may name. They are read on a thread of their own, beside the steps."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from sheaf_runtime.config import LoraModule
from sheaf_runtime.engine.adapter_room import AdapterRoom
from sheaf_runtime.models.errors import AdapterMissingError
from sheaf_runtime.priority import make_way
from sheaf_runtime.protocol.messages import AdapterAnswer, LoadAdapter
from sheaf_runtime.worker.executor import Executor


@dataclass(slots=True)
class _Known:
    """``retired``: unloaded, and kept for the requests that still have it."""

    name: str
    path: str
    retired: bool = False


@dataclass(slots=True)
class _Job:
    """An adapter to be read: for ``client``, or None: for requests that wait for it. Not ``done``: it is
    under way."""

    id_: int
    path: str
    client: bytes | None
    done: bool = False
    error: Exception | None = None


class Adapters:
    """``most_loaded`` are in memory, and one that is being read. What finds no room is read anew when a
    request needs it.

    A thread lives for one adapter: one that stayed would have threads of torch's own beside it for good.
    """

    def __init__(self, executor: Executor, room: AdapterRoom, most_loaded: int) -> None:
        self._executor, self._room, self._most_loaded = executor, room, most_loaded
        self._known: dict[int, _Known] = {}
        self._jobs: deque[_Job] = deque()  # the first is under way
        self._failed: dict[int, str] = {}

    def load_at_start(self, modules: Collection[LoraModule]) -> None:
        """Ids are counted from 1, in this order. Raises ``ValueError``."""
        for id_, module in enumerate(modules, 1):
            try:
                self._executor.load_adapter(id_, module.path)
            except ValueError as error:
                raise ValueError(f"--lora-modules {module.name}: {error}") from error
            self._known[id_] = _Known(module.name, module.path)
            self._keep(id_)

    def load(self, client: bytes, message: LoadAdapter) -> None:
        """The answer comes from ``take_answers``."""
        self._known[message.adapter] = _Known(message.name, message.path)
        self._enqueue(_Job(message.adapter, message.path, client))

    def unload(self, id_: int) -> None:
        """Requests that have it go on. Unknown ids are ignored."""
        if id_ in self._known:
            self._known[id_].retired = True

    def serves(self, id_: int) -> bool:
        """Whether new requests may name it."""
        return id_ in self._known and not self._known[id_].retired

    def name(self, id_: int) -> str:
        return self._known[id_].name

    def names(self, ids: Collection[int]) -> list[str]:
        return sorted({self._known[id_].name for id_ in ids})

    @property
    def reading(self) -> bool:
        return bool(self._jobs)

    @property
    def retired(self) -> bool:
        return any(known.retired for known in self._known.values())

    def forget(self, used: Collection[int]) -> None:
        """Retired ones that no request of ``used`` has any more leave the memory."""
        used = {*used, *(job.id_ for job in self._jobs)}
        for id_ in [id_ for id_, known in self._known.items() if known.retired and id_ not in used]:
            del self._known[id_]
            if id_ in self._room.loaded:
                self._drop(id_)

    def read_wanted(self) -> None:
        """Those that requests wait for, unless they are being read."""
        for id_ in self._room.wanted:
            if all(job.id_ != id_ for job in self._jobs):
                self._enqueue(_Job(id_, self._known[id_].path, None))

    def take_answers(self) -> list[tuple[bytes, AdapterAnswer]]:
        """Of those that have been read since, each with its client."""
        answers = []
        while self._jobs and self._jobs[0].done:
            job = self._jobs.popleft()
            if self._jobs:
                self._start(self._jobs[0])
            self._room.wanted.pop(job.id_, None)
            if job.error is None:
                self._keep(job.id_)
            problem = None if job.error is None else _words(job.error)
            if job.client is not None:
                missing = isinstance(job.error, AdapterMissingError)
                answers.append((job.client, AdapterAnswer(adapter=job.id_, problem=problem, missing=missing)))
                if problem is not None:
                    del self._known[job.id_]
            elif problem is not None:
                self._failed[job.id_] = problem
        return answers

    def take_failed(self) -> dict[int, str]:
        """Those that requests wait for in vain, and why."""
        failed, self._failed = self._failed, {}
        return failed

    def _enqueue(self, job: _Job) -> None:
        self._jobs.append(job)
        if len(self._jobs) == 1:
            self._start(job)

    def _start(self, job: _Job) -> None:
        def read() -> None:
            make_way()
            try:
                self._executor.load_adapter(job.id_, job.path)
            except Exception as error:
                job.error = error
            job.done = True

        threading.Thread(target=read, name="sheaf-adapter", daemon=True).start()

    def _keep(self, id_: int) -> None:
        room = self._room
        room.loaded[id_] = None
        while len(room.loaded) > self._most_loaded and (spare := room.spare()) is not None:
            self._drop(spare)

    def _drop(self, id_: int) -> None:
        del self._room.loaded[id_]
        self._executor.drop_adapter(id_)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
