"""One HTTP request's life in the engine: admission, text as it comes, and an end on every path."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

import msgspec

from sheaf_runtime.protocol.messages import AddRequest, FinishReason, RequestOutput, TokenLogprobs
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.server.body import Body
from sheaf_runtime.server.client import EngineDeadError, OutputQueue, RejectedError
from sheaf_runtime.server.deadline import failed
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.schemas import Generate
from sheaf_runtime.server.service import Service
from sheaf_runtime.server.tracing import Attributes, generation_attributes, latencies
from sheaf_runtime.text import OutputText

logger = logging.getLogger(__name__)
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientDisconnected(Exception):
    """Nobody is there to answer any more."""


class Piece(NamedTuple):
    """New text of one choice and the tokens that it took; the last piece has a ``finish_reason``.

    ``scored`` comes with the first piece of a choice: log-probabilities of the prompt, if asked for."""

    choice: int
    text: str
    finish_reason: FinishReason | None
    stop_reason: str | int | None
    token_ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprobs] = ()
    scored: Sequence[TokenLogprobs] | None = None


class Choice:
    """The state of one of the request's choices, which is one request of the engine."""

    def __init__(self, request: AddRequest, text: OutputText, *, copy: int) -> None:
        self.request = request
        self.copy = copy  # of its prompt: 0 to n-1
        self.text = text
        self.error: str | None = None
        self.cached_tokens = 0
        self.scheduled: float | None = None
        self.first: float | None = None
        self.last: float | None = None
        self.ended = False
        self.reason: FinishReason | None = None


class Generation:
    """``start`` it, read its ``pieces``, and ``close`` it on every path: that ends what still runs."""

    def __init__(
        self,
        service: Service,
        request_id: str,
        prompts: Sequence[tuple[list[int], SamplingParams]],
        body: Generate,
        arrival: float,
        *,
        timeout: float | None = None,
        visible: frozenset[int] = frozenset(),
        counts_tokens: bool = False,
    ) -> None:
        """``visible`` special tokens are part of the text. ``counts_tokens``: those without text are told.
        Raises ``ApiError`` for an adapter that was unloaded meanwhile."""
        self.request_id = request_id
        self._service = service
        self._queue = OutputQueue()
        self._arrival = arrival
        self._facts: dict[str, Any] = {}  # for the access log, complete once it is closed
        self._span: Attributes | None = None  # for its trace, likewise
        self._body: Body | None = None
        self._model = body.model or service.model_names[0]
        adapter = service.adapter_of(body.model)
        self._n = body.n
        self._watcher: asyncio.Task[None] | None = None
        # Each token is news then, though it may add no text yet.
        self._tokens_wanted = counts_tokens or body.num_logprobs is not None or body.return_token_ids
        self._only_scores = body.max_tokens == 0
        self._prompt_tokens = sum(len(ids) for ids, _ in prompts)
        self.choices: list[Choice] = []
        self._index: dict[str, int] = {}
        self._open = 0  # choices that have not ended
        for ids, sampling in prompts:
            first = f"{request_id}-{len(self.choices)}"
            for copy in range(body.n):
                index = len(self.choices)
                request = AddRequest(
                    request_id=f"{request_id}-{index}",
                    prompt_token_ids=ids,
                    sampling=_for_copy(sampling, copy),
                    arrival_time=arrival,
                    priority=body.priority,
                    cache_salt=body.cache_salt,
                    after=first if copy else None,
                    timeout=timeout,
                    adapter=adapter,
                )
                text = OutputText(
                    service.folder.tokenizer,
                    stop=body.stop,
                    include_stop=body.include_stop_str_in_output,
                    skip_special_tokens=body.skip_special_tokens,
                    visible=visible,
                    min_tokens=body.min_tokens,
                    after=ids,
                )
                self._index[request.request_id] = index
                self.choices.append(Choice(request, text, copy=copy))

    def report_to(self, scope: MutableMapping[str, Any]) -> None:
        """Where the access log and the trace of the HTTP request look, and who waits for its body."""
        self._facts, self._span = scope["facts"], scope.get("span")
        self._body = scope["body"]

    def close(self, reason: FinishReason = "abort") -> None:
        """Choices that have not ended are aborted in the engine and counted under ``reason``."""
        if self._watcher is not None:
            self._watcher.cancel()
        self._abort_rest()
        for choice in self.choices:
            if not choice.ended:
                self._end(choice, reason)
        first = min((choice.first for choice in self.choices if choice.first is not None), default=None)
        self._facts["prompt_tokens"], self._facts["completion_tokens"] = (
            self.prompt_tokens,
            self.completion_tokens,
        )
        if first is not None:
            self._facts["first_token_ms"] = round((first - self._arrival) * 1000)
        if self._span is not None:
            self._trace(self._span, first)

    async def start(self, receive: Receive) -> None:
        """Returns when the engine has accepted every choice. From here on a disconnect ends the request.

        Raises ``ApiError`` when it has not; nothing has been answered then, and it is closed already.
        """
        self._open = len(self.choices)
        if self._body is not None:
            self._body.handled()
        self._watcher = asyncio.create_task(self._watch(receive))
        client = self._service.client
        adds = [client.add(choice.request, self._queue) for choice in self.choices]
        try:
            results = await asyncio.gather(*adds, return_exceptions=True)
        except asyncio.CancelledError:
            self.close()
            raise
        errors = [result for result in results if isinstance(result, BaseException)]
        if not errors:
            return
        dead = isinstance(errors[0], EngineDeadError)
        if not dead:
            self._abort_rest()
            for choice in self.choices:
                choice.ended = True  # none of them began: no metric counts them
        self.close("error")
        if dead:
            raise ApiError(500, str(errors[0]), code="engine_dead") from errors[0]
        if isinstance(errors[0], RejectedError):
            raise rejected(errors[0]) from errors[0]
        raise errors[0]

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Text of all choices as the engine delivers it, one list per step.

        Raises ``ApiError`` if the engine is lost, ``ClientDisconnected`` if the client is.
        """
        while self._open:
            try:
                outputs = await self._queue.get()
            except EngineDeadError as error:
                raise ApiError(500, str(error), code="engine_dead") from error
            now = time.time()
            pieces = []
            for output in outputs:
                index = self._index[output.request_id]
                piece = self._take(index, self.choices[index], output, now)
                if piece is not None:
                    pieces.append(piece)
            if pieces:
                yield pieces

    @property
    def prompt_tokens(self) -> int:
        """Each prompt counts once, however many choices it has."""
        return self._prompt_tokens

    @property
    def completion_tokens(self) -> int:
        return sum(choice.text.num_tokens for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        return sum(choice.cached_tokens for choice in self.choices if choice.copy == 0)

    @property
    def error(self) -> str | None:
        """Why a choice failed, if one did."""
        return next((choice.error for choice in self.choices if choice.error is not None), None)

    @property
    def failure(self) -> ApiError | None:
        """The same as an answer."""
        timed_out = any(choice.reason == "timeout" for choice in self.choices)
        return None if self.error is None else failed(self.error, timed_out=timed_out)

    def _take(self, index: int, choice: Choice, output: RequestOutput, now: float) -> Piece | None:
        if choice.ended:  # by a stop string, and this was under way
            return None
        begins = choice.last is None
        self._time(choice, output, now)
        scored = (
            output.prompt_logprobs if begins and choice.request.sampling.prompt_logprobs is not None else None
        )
        if self._only_scores and output.finish_reason != "error":
            self._end(choice, "length")
            return Piece(index, "", "length", None, scored=scored)
        try:
            piece = self._read(index, choice, output)
        except Exception as error:  # in the tokenizer: this request's trouble
            piece = self._failed(index, "the output cannot be turned into text", error)
        if piece.finish_reason is not None:
            self._end(choice, piece.finish_reason)
        elif not piece.text and not (self._tokens_wanted and piece.token_ids) and scored is None:
            return None
        return piece if scored is None else piece._replace(scored=scored)

    def fail(self, index: int, what: str, error: Exception) -> Piece:
        """A choice ends here, because ``what`` went wrong with what came of it; its last piece."""
        piece = self._failed(index, what, error)
        if not self.choices[index].ended:
            self._end(self.choices[index], "error")
        return piece

    def _failed(self, index: int, what: str, error: Exception) -> Piece:
        choice = self.choices[index]
        logger.error("request %s: %s", choice.request.request_id, what, exc_info=error)
        self._service.client.abort([choice.request.request_id])
        choice.error = f"{what}: {type(error).__name__}: {error}"
        return Piece(index, "", "error", None)

    def _read(self, index: int, choice: Choice, output: RequestOutput) -> Piece:
        finish, stop = output.finish_reason, output.stop_token_id
        choice.error = output.error
        before = choice.text.num_tokens
        text = choice.text.push(output.token_ids, finished=finish is not None, stop_token_id=stop)
        # The model's own end is none that somebody asked for.
        asked = stop in choice.request.sampling.stop_token_ids
        stop_reason: str | int | None = stop if asked else None
        if choice.text.stop_string is not None:
            if finish is None:
                self._service.client.abort([output.request_id])
            finish, stop_reason = "stop", choice.text.stop_string
        count = choice.text.num_tokens - before
        return Piece(index, text, finish, stop_reason, output.token_ids[:count], output.logprobs[:count])

    def _time(self, choice: Choice, output: RequestOutput, now: float) -> None:
        if output.token_ids:
            metrics = self._service.metrics
            if choice.last is None:
                metrics.time_to_first_token.observe(now - self._arrival)
                choice.first = output.first_token_time or now
                choice.scheduled = output.scheduled_time
                choice.cached_tokens = output.cached_tokens
            else:
                count = len(output.token_ids)
                metrics.inter_token_latency.observe((now - choice.last) / count, count)
            choice.last = now

    def _end(self, choice: Choice, reason: FinishReason) -> None:
        choice.ended, choice.reason = True, reason
        self._open -= 1
        self._service.metrics.on_finished(
            reason,
            arrival=self._arrival,
            scheduled=choice.scheduled,
            first=choice.first,
            last=choice.last,
            prompt_tokens=len(choice.request.prompt_token_ids),
            generated_tokens=choice.text.num_tokens,
            max_tokens=choice.request.sampling.max_tokens,
        )
        first = self._index[choice.request.request_id] - choice.copy
        copies = self.choices[first : first + self._n]
        if all(copy.ended for copy in copies):
            longest = max(copy.text.num_tokens for copy in copies)
            self._service.metrics.on_copies_finished(n=self._n, longest=longest)

    def _trace(self, span: Attributes, first: float | None) -> None:
        span |= generation_attributes(
            request_id=self.request_id,
            model=self._model,
            n=self._n,
            sampling=self.choices[0].request.sampling,
            sequences=len(self.choices),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            finish_reasons=[choice.reason for choice in self.choices if choice.reason is not None],
        )
        span |= latencies(
            arrival=self._arrival,
            scheduled=min((c.scheduled for c in self.choices if c.scheduled is not None), default=None),
            first=first,
            last=max((c.last for c in self.choices if c.last is not None), default=None),
            ended=time.time(),
        )

    def _abort_rest(self) -> None:
        rest = [choice.request.request_id for choice in self.choices if not choice.ended]
        if rest:
            self._service.client.abort(rest)

    async def _watch(self, receive: Receive) -> None:
        """Frameworks do not cancel a request whose client has gone; this does, at once."""
        with contextlib.suppress(asyncio.CancelledError):
            while (await receive())["type"] != "http.disconnect":
                pass
            self._abort_rest()
            self._queue.fail(ClientDisconnected())


def _for_copy(sampling: SamplingParams, copy: int) -> SamplingParams:
    """Choices of one prompt differ although the request's seed is one."""
    if copy == 0 or sampling.seed is None:
        return sampling
    return msgspec.structs.replace(sampling, seed=(sampling.seed + copy) % 2**63)


def rejected(error: RejectedError) -> ApiError:
    rejection = error.rejection
    if rejection.reason == "queue_full":
        headers = {"Retry-After": str(rejection.retry_after)}
        return ApiError(429, rejection.message, code="queue_full", headers=headers)
    if rejection.reason == "draining":
        return ApiError(503, rejection.message, code="draining", headers={"Retry-After": "1"})
    if rejection.reason == "not_found":
        return ApiError(404, rejection.message, param=rejection.param, code="model_not_found")
    if rejection.reason == "invalid":
        return ApiError(400, rejection.message, param=rejection.param)
    return ApiError(500, rejection.message)
