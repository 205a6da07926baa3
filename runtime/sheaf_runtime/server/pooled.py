"""One HTTP request's inputs in the engine, when what comes back are vectors."""

from __future__ import annotations

import asyncio
import contextlib
import time
from array import array
from collections.abc import Sequence
from typing import Any

from fastapi import Request

from sheaf_runtime.protocol.messages import AddRequest, FinishReason, RequestOutput
from sheaf_runtime.protocol.pooling import PoolingParams
from sheaf_runtime.server.client import EngineDeadError, OutputQueue, RejectedError
from sheaf_runtime.server.deadline import failed, timeout_of
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.generation import ClientDisconnected, rejected
from sheaf_runtime.server.pooling_schemas import PoolingBody
from sheaf_runtime.server.service import Service
from sheaf_runtime.server.tracing import Attributes, latencies


class PooledBatch:
    """``run`` it once. At most twice as many inputs as the engine has seats are in it at a time, and no more
    than its queue takes, so that a large batch neither fills the queue nor keeps others from it."""

    def __init__(self, service: Service, id_: str, inputs: Sequence[list[int]], arrival: float) -> None:
        self._service = service
        self.id = id_
        self._inputs = inputs
        self._arrival = arrival
        self._timeout: float | None = None
        self._queue = OutputQueue()
        self._running: set[int] = set()
        self._scheduled: float | None = None  # the first of them
        self._vectors: list[array[float]] = [array("f")] * len(inputs)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self._inputs))

    async def run(self, body: PoolingBody, params: PoolingParams, request: Request) -> list[array[float]]:
        """The vectors in the order of the inputs. Raises ``ApiError``, or ``ClientDisconnected``."""
        request.scope["facts"]["prompt_tokens"] = self.num_tokens
        request.scope["body"].handled()
        span: Attributes | None = request.scope.get("span")
        info = self._service.client.info
        assert info is not None
        self._timeout = timeout_of(request, body.timeout)
        watcher = asyncio.create_task(self._watch(request.receive))
        waiting = list(range(len(self._inputs)))[::-1]
        seats = info.max_num_seqs
        config = self._service.engine_config
        most = seats + min(seats, config.max_waiting_requests)
        try:
            while waiting or self._running:
                added: list[int] = []
                tokens = sum(len(self._inputs[index]) for index in self._running)
                while waiting and (in_it := len(self._running) + len(added)) < most:
                    tokens += len(self._inputs[waiting[-1]])
                    if in_it and config.max_waiting_tokens is not None and tokens > config.max_waiting_tokens:
                        break
                    added.append(waiting.pop())
                await asyncio.gather(*(self._add(index, body, params) for index in added))
                for output in await self._queue.get():
                    self._take(output)
        except EngineDeadError as error:
            raise ApiError(500, str(error), code="engine_dead") from error
        except RejectedError as error:
            raise rejected(error) from error
        except ClientDisconnected:
            for index in self._running:
                self._count(index, "abort")
            raise
        finally:
            if span is not None:
                self._trace(span)
            watcher.cancel()
            self._service.client.abort([self._name(index) for index in self._running])
        return self._vectors

    def _name(self, index: int) -> str:
        return f"{self.id}-{index}"

    async def _add(self, index: int, body: PoolingBody, params: PoolingParams) -> None:
        self._running.add(index)
        message = AddRequest(
            request_id=self._name(index),
            prompt_token_ids=self._inputs[index],
            arrival_time=self._arrival,
            priority=body.priority,
            cache_salt=body.cache_salt,
            pooling=params,
            timeout=self._timeout,
        )
        await self._service.client.add(message, self._queue)

    def _trace(self, span: Attributes) -> None:
        span |= {
            "gen_ai.request.id": self.id,
            "gen_ai.response.model": self._service.model_names[0],
            "gen_ai.usage.num_sequences": len(self._inputs),
            "gen_ai.usage.prompt_tokens": self.num_tokens,
        }
        span |= latencies(
            arrival=self._arrival, scheduled=self._scheduled, first=None, last=None, ended=time.time()
        )

    def _take(self, output: RequestOutput) -> None:
        index = int(output.request_id.rpartition("-")[2])
        self._running.discard(index)
        if output.scheduled_time is not None:
            self._scheduled = min(self._scheduled or output.scheduled_time, output.scheduled_time)
        self._count(index, output.finish_reason or "error", output)
        if output.finish_reason == "abort":
            raise ApiError(503, "this server is shutting down; retry", code="draining")
        if output.pooled is None:
            timed_out = output.finish_reason == "timeout"
            raise failed(f"input {index}: {output.error}", timed_out=timed_out)
        self._vectors[index] = array("f", output.pooled)

    def _count(self, index: int, reason: FinishReason, output: RequestOutput | None = None) -> None:
        self._service.metrics.on_finished(
            reason,
            arrival=self._arrival,
            scheduled=output.scheduled_time if output else None,
            first=output.first_token_time if output else None,
            last=time.time(),
            prompt_tokens=len(self._inputs[index]),
            generated_tokens=0,
        )

    async def _watch(self, receive: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while (await receive())["type"] != "http.disconnect":
                pass
            self._queue.fail(ClientDisconnected())
