"""Token ids to text, a few tokens at a time, never splitting a character.

Decoding all tokens again at each step is quadratic, and decoding each alone is wrong: a character may span
tokens, and spaces depend on the neighbours. So a short window of recent tokens is decoded, and what was
already handed out is cut off its front.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sheaf_runtime.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
# The window is cut back to KEEP tokens once it exceeds LIMIT. A UTF-8 character has at most 4 bytes, so the
# bytes of an unfinished one are always among the last KEEP tokens.
LIMIT = 24
KEEP = 6
# A run of byte-fallback tokens is only decoded as a whole; waiting for its end is given up after this many.
LONGEST_BYTE_RUN = 64


class Detokenizer:
    """``push`` ids, get text that will not change; ``finish`` gives the rest.

    The concatenation equals ``tokenizer.decode`` of all ids (except where a run of byte-fallback tokens
    longer than ``LONGEST_BYTE_RUN`` is not UTF-8 in the end). With the tokens ``after`` which they come it is
    what they add to the text of these: a blank at its beginning stays, which decoding alone would strip, and
    a character that begins there is given whole.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        visible: frozenset[int] = frozenset(),
        after: Sequence[int] = (),
    ) -> None:
        """``visible`` special tokens are never skipped."""
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids - visible if skip_special_tokens else frozenset[int]()
        self._window: list[int] = []
        self._given = 0  # characters of the window's text that were handed out
        self._byte_run = 0  # trailing byte-fallback tokens in the window
        if after:
            self._come_after(after[-LIMIT:])

    def push(self, ids: Iterable[int]) -> str:
        fresh = [id_ for id_ in ids if id_ not in self._skipped]
        if not fresh:
            return ""
        self._window += fresh
        if self._tokenizer.byte_ids and self._inside_byte_run(fresh):
            return ""
        text = self._tokenizer.decode(self._window, skip_special_tokens=False)
        # One replacement character at the end may be the start of a character whose bytes are to come.
        # Those before it are final: the decoder writes one for each *maximal* broken sequence.
        end = len(text) - text.endswith(REPLACEMENT)
        delta = text[self._given : end]
        self._given = max(self._given, end)
        if len(self._window) > LIMIT:
            self._shorten(held=len(text) - end)
        return delta

    def finish(self) -> str:
        """What was held back. The detokenizer is spent afterwards."""
        text = self._tokenizer.decode(self._window, skip_special_tokens=False)
        return text[self._given :]

    def _come_after(self, ids: Sequence[int]) -> None:
        ids = [id_ for id_ in ids if id_ not in self._skipped]
        begin = max(0, len(ids) - KEEP)
        while begin and ids[begin] in self._tokenizer.byte_ids:  # a run is decoded as a whole
            begin -= 1
        self._window = ids[begin:]
        text = self._tokenizer.decode(self._window, skip_special_tokens=False)
        # The bytes of an unfinished character: one each where bytes are tokens.
        unfinished = 3 if self._tokenizer.byte_ids else 1
        self._given = max(len(text) - unfinished, len(text.rstrip(REPLACEMENT)))

    def _inside_byte_run(self, fresh: list[int]) -> bool:
        for id_ in fresh:
            if id_ in self._tokenizer.byte_ids:
                self._byte_run += 1
            elif self._byte_run and self._tokenizer.token(id_) is not None:  # an unknown id is no token
                self._byte_run = 0
        if self._byte_run < LONGEST_BYTE_RUN:
            return self._byte_run > 0
        self._byte_run = 0
        return False

    def _shorten(self, held: int) -> None:
        self._window = self._window[-KEEP:]
        text = self._tokenizer.decode(self._window, skip_special_tokens=False)
        self._given = len(text) - held
