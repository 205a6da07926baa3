"""Stop strings in a stream of text pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Finds the first stop string and holds back no more text than could still become one.

    The result does not depend on how the text is cut into pieces: the match that is complete first wins,
    and of two that end together the longer one.

    Attributes:
        hit: the stop string that was found, or None.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = stops
        self._include = include
        self._held = ""
        self.hit: str | None = None

    def push(self, piece: str) -> str:
        """Text that is safe to hand out; nothing more comes once ``hit`` is set."""
        text = self._held + piece
        matches = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            end, start, self.hit = min(matches)
            self._held = ""
            return text[: end if self._include else start]
        held = max((self._beginnings(text, stop) for stop in self._stops), default=0)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]

    def end(self, piece: str, stop: str) -> str:
        """The last text, behind which comes a stop that is none of its characters."""
        text = self.push(piece)
        if self.hit is not None:
            return text
        self.hit = stop
        return text + self.finish() + (stop if self._include else "")

    def finish(self) -> str:
        """The text held back, when the request ends for another reason."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _beginnings(text: str, stop: str) -> int:
        """Length of the longest end of ``text`` that ``stop`` begins with."""
        at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while at >= 0:
            if stop.startswith(text[at:]):
                return len(text) - at
            at = text.find(stop[0], at + 1)
        return 0
