"""Pieces of a generation as an answer, whole or in chunks; completions here, chats in ``chat_answer``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from sheaf_runtime.protocol.messages import FinishReason, TokenLogprobs
from sheaf_runtime.server import answers
from sheaf_runtime.server.answers import PromptTokensDetails, Usage, encode
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.generation import Generation, Piece
from sheaf_runtime.server.ids import answer_id
from sheaf_runtime.server.logprobs import CompletionLogprobs, LogprobsWriter, PromptLogprobs, TextOffsets
from sheaf_runtime.server.schemas import CompletionRequest, Generate, StreamOptions
from sheaf_runtime.server.stream import DONE, error_event, event
from sheaf_runtime.text import Tokenizer


@dataclass
class Collected:
    """What has come of one choice."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    scored: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class Answer(ABC):
    """An answer of one or several choices, as ``stream`` takes it."""

    def __init__(
        self, generation: Generation, tokenizer: Tokenizer, created: float, model: str, body: Generate
    ) -> None:
        self.id = answer_id(generation.request_id, body.request_id)
        self.created, self.model = int(created), model
        options = body.stream_options or StreamOptions()
        self._include_usage = options.include_usage
        self._continuous = options.include_usage and options.continuous_usage_stats
        self._generation = generation
        self._with_logprobs = body.num_logprobs is not None
        self._with_ids = body.return_token_ids
        self._with_scores = body.prompt_logprobs is not None
        self._writer = LogprobsWriter(tokenizer, as_ids=body.return_tokens_as_token_ids)
        self._collected = [Collected() for _ in generation.choices]

    def take(self, piece: Piece) -> None:
        choice = self._collected[piece.choice]
        choice.text += piece.text
        choice.token_ids += piece.token_ids
        choice.logprobs += piece.logprobs
        if piece.scored is not None:
            choice.scored += piece.scored
        if piece.finish_reason is not None:
            choice.finish_reason, choice.stop_reason = piece.finish_reason, piece.stop_reason

    def drop(self, index: int) -> None:
        """What has come of a choice cannot be told."""
        self._collected[index] = Collected()

    @abstractmethod
    def body(self) -> bytes: ...

    @abstractmethod
    def chunk(self, piece: Piece) -> bytes: ...

    @abstractmethod
    def usage_chunk(self) -> bytes:
        """The last one, if it was asked for."""

    @property
    def opening(self) -> bytes:
        return b""

    @property
    def closing(self) -> bytes:
        end = DONE
        if (failure := self._generation.failure) is not None:
            end = error_event(failure) + end
        return self.usage_chunk() + end if self._include_usage else end

    def failure(self, error: ApiError) -> bytes:
        """In place of the ``closing``: the engine is lost."""
        return error_event(error)

    @property
    def _usage(self) -> Usage:
        prompt, completion = self._generation.prompt_tokens, self._generation.completion_tokens
        details = PromptTokensDetails(self._generation.cached_tokens)
        return Usage(prompt, completion, prompt + completion, details)

    @property
    def _usage_so_far(self) -> Usage | UnsetType | None:
        """What a chunk says about usage. OpenAI: with ``include_usage``, null in every chunk but the last."""
        if self._continuous:
            return self._usage
        return None if self._include_usage else UNSET

    @property
    def _error(self) -> answers.Error | UnsetType:
        failure = self._generation.failure
        return UNSET if failure is None else answers.Error(**failure.body["error"])

    def _ids(self, token_ids: list[int]) -> list[int] | UnsetType:
        return token_ids if self._with_ids else UNSET

    def _prompt_ids(self, index: int) -> list[int] | UnsetType:
        return self._ids(self._generation.choices[index].request.prompt_token_ids)

    def _prompt_logprobs(self, index: int) -> PromptLogprobs | UnsetType:
        return self._writer.prompt(self._collected[index].scored) if self._with_scores else UNSET


class CompletionAnswer(Answer):
    def __init__(
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        created: float,
        model: str,
        body: CompletionRequest,
    ) -> None:
        super().__init__(generation, tokenizer, created, model, body)
        self._echo = body.echo
        self._tops = body.logprobs or 0
        self._echoed = [""] * len(generation.choices)
        if body.echo:
            self._echoed = [
                self._echo_of(tokenizer, body, index // body.n) for index in range(len(generation.choices))
            ]
        skipped = tokenizer.special_ids if body.skip_special_tokens else frozenset[int]()
        self._offsets = [TextOffsets(tokenizer, skipped=skipped, opens=body.echo) for _ in generation.choices]
        self._begun: set[int] = set()

    def _echo_of(self, tokenizer: Tokenizer, body: CompletionRequest, index: int) -> str:
        """The prompt as it was given, or what was left of it."""
        prompt = body.prompt[index]
        if isinstance(prompt, str) and body.truncate_prompt_tokens is None:
            return prompt
        ids = self._generation.choices[index * body.n].request.prompt_token_ids
        return tokenizer.decode(ids, skip_special_tokens=body.skip_special_tokens)

    def chunk(self, piece: Piece) -> bytes:
        index, begins = piece.choice, piece.choice not in self._begun
        self._begun.add(index)
        choice = answers.CompletionChoice(
            index,
            (self._echoed[index] if begins else "") + piece.text,
            piece.finish_reason,
            piece.stop_reason,
            logprobs=self._logprobs(index, piece.logprobs, piece.scored or (), begins=begins),
            token_ids=self._ids([*piece.token_ids]),
            prompt_token_ids=self._prompt_ids(index) if begins else UNSET,
        )
        return self._event([choice], self._usage_so_far)

    def usage_chunk(self) -> bytes:
        return self._event([], self._usage)

    def _event(self, choices: list[answers.CompletionChoice], total: Usage | UnsetType | None) -> bytes:
        return event(answers.Completion(self.id, self.created, self.model, choices, usage=total))

    def body(self) -> bytes:
        choices = [
            answers.CompletionChoice(
                index,
                self._echoed[index] + choice.text,
                choice.finish_reason,
                choice.stop_reason,
                logprobs=self._logprobs(index, choice.logprobs, choice.scored, begins=True),
                prompt_logprobs=self._prompt_logprobs(index),
                token_ids=self._ids(choice.token_ids),
                prompt_token_ids=self._prompt_ids(index),
            )
            for index, choice in enumerate(self._collected)
        ]
        return encode(
            answers.Completion(
                self.id, self.created, self.model, choices, usage=self._usage, error=self._error
            )
        )

    def _logprobs(
        self, index: int, entries: Sequence[TokenLogprobs], scored: Sequence[TokenLogprobs], *, begins: bool
    ) -> CompletionLogprobs | None:
        """Those of the prompt come first, if it is echoed."""
        if not self._with_logprobs:
            return None
        first = None
        if self._echo and begins:
            first = self._generation.choices[index].request.prompt_token_ids[0]
            few = self._tops  # prompt_logprobs may have asked for more
            entries = [
                *(replace(e, top_ids=e.top_ids[:few], top_logprobs=e.top_logprobs[:few]) for e in scored),
                *entries,
            ]
        return self._writer.completion(entries, self._offsets[index], first=first)
