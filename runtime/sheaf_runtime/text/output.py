"""One request's output: tokens in, text out, and whether a stop string ended it."""

from __future__ import annotations

from collections.abc import Sequence

from sheaf_runtime.text.detokenizer import Detokenizer
from sheaf_runtime.text.stops import StopStrings
from sheaf_runtime.text.tokenizer import Tokenizer


class OutputText:
    """Joins the detokenizer and the stop strings.

    Attributes:
        num_tokens: tokens taken so far; those after a stop string do not count.
        stop_string: the stop string that ended the output, or None. The engine does not see text: who
            drives this must abort the request there.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        visible: frozenset[int] = frozenset(),
        min_tokens: int = 0,
        after: Sequence[int] = (),
    ) -> None:
        """``after``: the prompt. A stop string that is a special token stops though the text skips that."""
        self._detokenizer = Detokenizer(
            tokenizer, skip_special_tokens=skip_special_tokens, visible=visible, after=after
        )
        self._stops = StopStrings(stop, include=include_stop) if stop else None
        skipped = tokenizer.special_ids - visible if skip_special_tokens else frozenset[int]()
        self._stop_tokens = {id_: text for text in stop if (id_ := tokenizer.special_id(text)) in skipped}
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self.num_tokens = 0

    @property
    def stop_string(self) -> str | None:
        return self._stops.hit if self._stops else None

    def push(
        self, token_ids: Sequence[int], *, finished: bool = False, stop_token_id: int | None = None
    ) -> str:
        """New text. ``stop_token_id`` is the id that ended the request (it is the last token then): like
        a stop string it is counted, but not part of the text unless stops are included."""
        cut_last = stop_token_id is not None and not self._include_stop and bool(token_ids)
        text_ids = token_ids[:-1] if cut_last else token_ids
        if self._stops is None:
            self.num_tokens += len(token_ids)
            text = self._detokenizer.push(text_ids)
            return text + self._detokenizer.finish() if finished else text
        text = ""
        for id_ in text_ids:  # one by one, so that the count ends with the token that completed the stop
            self.num_tokens += 1
            may_stop = self.num_tokens > self._min_tokens
            if may_stop and id_ in self._stop_tokens:
                return text + self._stops.end(self._detokenizer.finish(), self._stop_tokens[id_])
            piece = self._detokenizer.push((id_,))
            text += self._stops.push(piece) if may_stop else piece
            if self._stops.hit:
                return text
        self.num_tokens += cut_last
        if finished:
            text += self._stops.push(self._detokenizer.finish())
            if not self._stops.hit:
                text += self._stops.finish()
        return text
