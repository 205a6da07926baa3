"""gpt-oss's channels as formats of structural tags. Its marks are single tokens there, so that no text, and
no string of a call's arguments, can hold one."""

from __future__ import annotations

from collections.abc import Mapping

from sheaf_runtime.parsers.harmony import CHANNEL, CONSTRAIN, END, MESSAGE, START
from sheaf_runtime.parsers.shapes import Offers, Shape, any_number, arguments, either, row

NEEDED = (START, CHANNEL, MESSAGE, END)


class Channels:
    """``marks``: the id of each mark of the format, ``NEEDED`` at least."""

    def __init__(self, marks: Mapping[str, int]) -> None:
        self.marks = marks

    def final(self) -> Shape:
        """The beginning of an answer up to the text of its last message."""
        return row(self._before("analysis"), *self._head("final"))

    def calls(self, offers: Offers) -> Shape:
        """An answer that calls. A call ends it, so there is one."""
        return row(self._before("analysis", "commentary"), self._call(offers))

    def calls_or_text(self, offers: Offers) -> Shape:
        text = row(*self._head("final"), self._free())
        return row(self._before("analysis", "commentary"), either(text, self._call(offers)))

    def calls_or(self, answer: Shape, offers: Offers) -> Shape:
        """As ``calls_or_text``, and the last message is ``answer``."""
        last = row(*self._head("final"), answer)
        return row(self._before("analysis"), either(last, self._call(offers)))

    def _call(self, offers: Offers) -> Shape:
        json = (self._token(CONSTRAIN), "json") if CONSTRAIN in self.marks else ("json",)
        return either(
            *(
                row(*self._head(f"commentary to=functions.{name} ", *json), arguments(schema))
                for name, schema in offers.items()
            )
        )

    def _before(self, *channels: str) -> Shape:
        """Messages before the last one."""
        bodies = either(*(row(*self._head(channel), self._free()) for channel in channels))
        return any_number(row(bodies, self._token(END), self._token(START), "assistant"))

    def _head(self, *channel: Shape | str) -> tuple[Shape | str, ...]:
        return (self._token(CHANNEL), *channel, self._token(MESSAGE))

    def _free(self) -> Shape:
        return {"type": "any_tokens", "exclude_tokens": list(self.marks.values())}

    def _token(self, mark: str) -> Shape:
        return {"type": "token", "token": self.marks[mark]}
