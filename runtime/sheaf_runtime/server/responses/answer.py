"""A response, whole or as a stream of numbered events."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import orjson

from sheaf_runtime.protocol.messages import FinishReason
from sheaf_runtime.protocol.sampling import SamplingParams
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.generation import Generation, Piece
from sheaf_runtime.server.ids import answer_id
from sheaf_runtime.server.logprobs import LogprobsWriter
from sheaf_runtime.server.reading import Reading
from sheaf_runtime.server.responses.output import Fields, Output
from sheaf_runtime.server.responses.request import ResponsesRequest
from sheaf_runtime.text import Tokenizer


class ResponseAnswer:
    """As ``stream`` takes it."""

    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        created: float,
        model: str,
        body: ResponsesRequest,
        reading: Reading,
    ) -> None:
        self._generation = generation
        self._body, self._created, self._model = body, int(created), model
        self._reader = reading.reader()
        self._output = Output(reading.new_call_id, streams=body.stream)
        self._writer = LogprobsWriter(tokenizer, as_ids=False)
        self._logprobs: list[Fields] = []  # of tokens whose text is held back
        self._finish_reason: FinishReason | None = None
        self._number = 0

    def take(self, piece: Piece) -> list[Fields]:
        """The events of a piece."""
        events = self._reader.push(piece.text, len(piece.token_ids))
        if self._body.with_logprobs and piece.logprobs:
            self._logprobs += msgspec.to_builtins(self._writer.chat(piece.logprobs).content)
        if piece.finish_reason is not None:
            self._finish_reason = piece.finish_reason
            events += self._reader.finish(ended=piece.finish_reason == "stop")
        if not events:
            return []
        logprobs, self._logprobs = self._logprobs, []
        return self._output.take(events, logprobs)

    def drop(self, index: int) -> None:
        """What has come of it cannot be told: the error is all there is."""

    def body(self) -> bytes:
        """Raises ``ApiError`` 500 where the request failed, 504 where its time was up."""
        if (failure := self._generation.failure) is not None:
            raise failure
        self._output.finish(self._item_status)
        return orjson.dumps(self._response(self._status))

    # --- as a stream ----------------------------------------------------------------------------------

    @property
    def opening(self) -> bytes:
        response = self._response("in_progress")
        return self._sse({"type": "response.created", "response": response}) + self._sse(
            {"type": "response.in_progress", "response": response}
        )

    def chunk(self, piece: Piece) -> bytes:
        return b"".join(map(self._sse, self.take(piece)))

    @property
    def closing(self) -> bytes:
        last = b"".join(map(self._sse, self._output.finish(self._item_status)))
        status = self._status
        return last + self._sse({"type": f"response.{status}", "response": self._response(status)})

    def failure(self, error: ApiError) -> bytes:
        last = b"".join(map(self._sse, self._output.finish("incomplete")))
        response = self._response("failed", str(error.detail))
        return last + self._sse({"type": "response.failed", "response": response})

    def _sse(self, event: Fields) -> bytes:
        number, self._number = self._number, self._number + 1
        data = orjson.dumps({**event, "sequence_number": number})
        return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), data)

    # --- the response ---------------------------------------------------------------------------------

    @property
    def _status(self) -> str:
        """OpenAI has no word for an answer that the server's end cut off: it failed."""
        return {"stop": "completed", "length": "incomplete"}.get(self._finish_reason or "", "failed")

    @property
    def _item_status(self) -> Any:
        return "completed" if self._status == "completed" else "incomplete"

    def _response(self, status: str, problem: str | None = None) -> Fields:
        body, sampling = self._body, self._generation.choices[0].request.sampling
        if status == "failed" and problem is None:
            problem = self._generation.error or "the server is shutting down"
        ended = status != "in_progress"
        return {
            "id": answer_id(self._generation.request_id, body.request_id),
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": None if problem is None else {"code": "server_error", "message": problem},
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self._model,
            "output": self._output.items,
            "usage": self._usage if ended else None,
            **_echoed(body, sampling),
        }

    @property
    def _usage(self) -> Fields:
        generation = self._generation
        spent, made = generation.prompt_tokens, generation.completion_tokens
        return {
            "input_tokens": spent,
            "input_tokens_details": {"cached_tokens": generation.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": self._reader.thought_tokens},
            "total_tokens": spent + made,
        }


def _echoed(body: ResponsesRequest, sampling: SamplingParams) -> Fields:
    """What was asked for, with the defaults that held."""
    reasoning = body.reasoning
    return {
        "background": False,
        "frequency_penalty": sampling.frequency_penalty,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata,
        "parallel_tool_calls": body.parallel_tool_calls,
        "presence_penalty": sampling.presence_penalty,
        "previous_response_id": None,
        "reasoning": {
            "effort": reasoning.effort if reasoning else None,
            "summary": reasoning.summary if reasoning else None,
        },
        "service_tier": "default",
        "store": False,
        "temperature": sampling.temperature,
        "text": {"format": body.text.format, "verbosity": body.text.verbosity or "medium"},
        "tool_choice": body.tool_choice,
        "tools": [{"parameters": None, "strict": None, **tool} for tool in body.tools],
        "top_logprobs": body.top_logprobs,
        "top_p": sampling.top_p,
        "truncation": body.truncation,
        "user": body.user,
    }
