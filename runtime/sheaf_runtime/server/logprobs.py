"""Log-probabilities in the shapes of OpenAI's two endpoints and of vLLM's ``prompt_logprobs``."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import msgspec

from sheaf_runtime.protocol.messages import TokenLogprobs
from sheaf_runtime.text import Tokenizer


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ChatTokenLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct):
    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class PromptLogprob(msgspec.Struct):
    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class TextOffsets:
    """Where in the text of a choice each of its tokens begins, in characters; a token inside a character
    begins where that does.

    ``skipped`` tokens are not in the text. ``opens``: the first one that is has nothing before it, where
    tokenizers with blanks in their tokens leave one out.
    """

    def __init__(self, tokenizer: Tokenizer, *, skipped: frozenset[int], opens: bool) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._opens = opens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def take(self, token_id: int) -> int:
        offset = self._offset
        if token_id not in self._skipped:
            text = self._tokenizer.token_bytes(token_id)
            if self._opens:
                self._opens = False
                alone = self._tokenizer.decode([token_id], skip_special_tokens=False)
                if text == b" " + alone.encode():
                    text = text[1:]
            self._offset += len(self._decoder.decode(text))
        return offset


class LogprobsWriter:
    """``as_ids`` writes ``token_id:5`` for each token's text, as ``return_tokens_as_token_ids`` asks."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def text(self, token_id: int) -> str:
        if self._as_ids:
            return f"token_id:{token_id}"
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    def chat(self, entries: Sequence[TokenLogprobs]) -> ChatLogprobs:
        def top(entry: TokenLogprobs) -> list[TopLogprob]:
            pairs = zip(entry.top_ids, entry.top_logprobs, strict=True)
            return [TopLogprob(self.text(id_), value, self._bytes(id_)) for id_, value in pairs]

        return ChatLogprobs(
            [
                ChatTokenLogprob(self.text(e.token_id), e.logprob, self._bytes(e.token_id), top(e))
                for e in entries
            ]
        )

    def completion(
        self, entries: Sequence[TokenLogprobs], offsets: TextOffsets, *, first: int | None = None
    ) -> CompletionLogprobs:
        """``first`` is a token before the entries that has no probability: nothing comes before it."""
        made = CompletionLogprobs([], [], [], [])
        if first is not None:
            made.text_offset.append(offsets.take(first))
            made.token_logprobs.append(None)
            made.tokens.append(self._name(first))
            made.top_logprobs.append(None)
        for entry in entries:
            own = self._name(entry.token_id)
            pairs = zip(entry.top_ids, entry.top_logprobs, strict=True)
            made.text_offset.append(offsets.take(entry.token_id))
            made.token_logprobs.append(entry.logprob)
            made.tokens.append(own)
            made.top_logprobs.append({self._name(id_): value for id_, value in pairs} | {own: entry.logprob})
        return made

    def prompt(self, entries: Sequence[TokenLogprobs]) -> PromptLogprobs:
        """vLLM's: by token id, nothing for the first token of the prompt."""
        made: PromptLogprobs = [None]
        for entry in entries:
            own = {entry.token_id: (entry.logprob, entry.rank)}
            tops = zip(entry.top_ids, entry.top_logprobs, strict=True)
            ranked = own | {id_: (value, rank) for rank, (id_, value) in enumerate(tops, 1)}
            made.append(
                {
                    str(id_): PromptLogprob(value, rank, self.text(id_))
                    for id_, (value, rank) in ranked.items()
                }
            )
        return made

    def _name(self, token_id: int) -> str:
        """What stands for a token in an object: parts of characters must not all look alike there."""
        if self._as_ids:
            return f"token_id:{token_id}"
        data = self._tokenizer.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _bytes(self, token_id: int) -> list[int]:
        return list(self._tokenizer.token_bytes(token_id))
