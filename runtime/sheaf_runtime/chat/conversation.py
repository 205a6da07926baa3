"""What has been said, and the request that asks for what comes next. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Conversation:
    """``options`` are fields of every request. A question that got no word of an answer is forgotten: else
    the next one would follow another question, which many templates refuse."""

    model: str
    system_prompt: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> dict[str, Any]:
        """The body of the request."""
        self.messages.append({"role": "user", "content": question})
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return {"model": self.model, "messages": [*system, *self.messages], "stream": True, **self.options}

    def answered(self, text: str) -> None:
        """Whole or stopped in the middle; thoughts are not part of it."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()

    def failed(self) -> None:
        self.messages.pop()

    def reset(self) -> None:
        self.messages.clear()

    @property
    def has_past(self) -> bool:
        return bool(self.messages)
