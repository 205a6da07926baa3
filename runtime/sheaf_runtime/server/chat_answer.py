"""A chat's answer: content, thoughts and tool calls, whole or in chunks."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from sheaf_runtime.parsers import Arguments, CallBegun, Event, Text, Thought, joined
from sheaf_runtime.protocol.messages import FinishReason
from sheaf_runtime.server import answers
from sheaf_runtime.server.answer import Answer
from sheaf_runtime.server.answers import ChatFinishReason, CompletionTokensDetails, Delta, Usage, encode
from sheaf_runtime.server.generation import Generation, Piece
from sheaf_runtime.server.reading import Reading
from sheaf_runtime.server.said import Said
from sheaf_runtime.server.schemas import ChatCompletionRequest
from sheaf_runtime.server.stream import event
from sheaf_runtime.text import Tokenizer


class ChatAnswer(Answer):
    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        created: float,
        model: str,
        body: ChatCompletionRequest,
        reading: Reading,
    ) -> None:
        super().__init__(generation, tokenizer, created, model, body)
        self._reading = reading
        self._readers = [reading.reader() for _ in generation.choices] if reading.needed else []
        self._said = [Said(reading.new_call_id) for _ in generation.choices]
        self._begun: set[int] = set()
        self._num_calls = [0] * len(generation.choices)

    def take(self, piece: Piece) -> None:
        super().take(piece)
        self._said[piece.choice].take(self._events(piece))

    def _events(self, piece: Piece) -> list[Event]:
        """What a piece of text means."""
        if not self._readers:
            return [Text(piece.text)] if piece.text else []
        reader = self._readers[piece.choice]
        events = reader.push(piece.text, len(piece.token_ids))
        if piece.finish_reason is not None:
            events += reader.finish(ended=piece.finish_reason == "stop")
        return events

    def _finish_reason(self, index: int, reason: FinishReason | None) -> ChatFinishReason | None:
        called = self._readers and self._readers[index].finishes_with_calls
        return "tool_calls" if called and reason == "stop" else reason

    # --- whole ----------------------------------------------------------------------------------------

    def body(self) -> bytes:
        choices = [
            answers.ChatChoice(
                index,
                self._message(self._said[index]),
                self._finish_reason(index, choice.finish_reason),
                choice.stop_reason,
                logprobs=self._writer.chat(choice.logprobs) if self._with_logprobs else None,
                token_ids=self._ids(choice.token_ids),
            )
            for index, choice in enumerate(self._collected)
        ]
        return encode(
            answers.ChatCompletion(
                self.id,
                self.created,
                self.model,
                choices,
                self._usage,
                prompt_logprobs=self._prompt_logprobs(0),
                prompt_token_ids=self._prompt_ids(0),
                error=self._error,
            )
        )

    def _message(self, said: Said) -> answers.ChatMessage:
        silent = bool(said.calls or said.thoughts)  # nothing said beside these is null, not empty
        calls = [
            answers.ToolCall(answers.Function(call.name, call.arguments), id=call.id, type="function")
            for call in said.calls
        ]
        return answers.ChatMessage(
            (said.content or None) if silent else said.content,
            reasoning=said.thoughts or None,
            tool_calls=calls or UNSET,
        )

    @property
    def _usage(self) -> Usage:
        total = super()._usage
        if self._reading.tells_thoughts:
            spent = sum(reader.thought_tokens for reader in self._readers)
            total.completion_tokens_details = CompletionTokensDetails(spent)
        return total

    # --- in chunks ------------------------------------------------------------------------------------

    def chunk(self, piece: Piece) -> bytes:
        index, chunks = piece.choice, b""
        if index not in self._begun:
            prompt_ids = self._prompt_ids(index) if not self._begun else UNSET
            self._begun.add(index)
            opening = answers.ChunkChoice(index, Delta(role="assistant", content=""))
            chunks = self._chunk(opening, prompt_ids)
        deltas = self._deltas(index, self._events(piece))
        logprobs = self._writer.chat(piece.logprobs) if self._with_logprobs and piece.logprobs else None
        ids = self._ids([*piece.token_ids])
        if not deltas and (piece.logprobs or (self._with_ids and piece.token_ids)):
            deltas = [Delta()]
        for delta in deltas:  # what belongs to the tokens comes with the first
            chunks += self._chunk(answers.ChunkChoice(index, delta, logprobs=logprobs, token_ids=ids))
            logprobs, ids = None, UNSET if ids is UNSET else []
        if piece.finish_reason is not None:
            reason = self._finish_reason(index, piece.finish_reason)
            chunks += self._chunk(answers.ChunkChoice(index, Delta(), reason, piece.stop_reason))
        return chunks

    def _deltas(self, index: int, events: Sequence[Event]) -> list[Delta]:
        """OpenAI's: a call's id and name first, then its arguments. A call that is none after all cannot be
        taken back: its text follows as content, and no ``tool_calls`` ends the answer."""
        deltas = []
        for event_ in joined(events):
            if isinstance(event_, Text):
                deltas.append(Delta(content=event_.text))
            elif isinstance(event_, Thought):
                deltas.append(Delta(reasoning=event_.text))
            elif isinstance(event_, CallBegun):
                deltas.append(Delta(tool_calls=[self._begin(index, event_)]))
            elif isinstance(event_, Arguments):
                function = answers.Function(arguments=event_.text)
                deltas.append(Delta(tool_calls=[answers.ToolCall(function, self._num_calls[index] - 1)]))
        return deltas

    def _begin(self, index: int, call: CallBegun) -> answers.ToolCall:
        number = self._num_calls[index]
        self._num_calls[index] += 1
        function = answers.Function(call.name, "")
        return answers.ToolCall(function, number, self._reading.new_call_id(), "function")

    def _chunk(self, choice: answers.ChunkChoice, prompt_ids: list[int] | UnsetType = UNSET) -> bytes:
        return event(
            answers.ChatChunk(
                self.id,
                self.created,
                self.model,
                [choice],
                usage=self._usage_so_far,
                prompt_token_ids=prompt_ids,
            )
        )

    def usage_chunk(self) -> bytes:
        return event(answers.ChatChunk(self.id, self.created, self.model, [], usage=self._usage))
