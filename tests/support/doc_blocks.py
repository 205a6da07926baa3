"""The fenced blocks of the project's pages, and the commands in them.

A block of commands is marked `sh`. One that no test can run has a comment right above it that says why:
`<!-- not run: REASON -->`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+) -->\n+)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    why_not: str  # why it is not run; empty where it is

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    place: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place} {' '.join(self.words)[:60]}"


def pages() -> list[Path]:
    return [
        *sorted(ROOT.glob("*.md")),
        ROOT / "charts" / "sheaf" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]


def blocks() -> Iterator[Block]:
    for path in pages():
        text = path.read_text()
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start("language")) + 1
            page, why = str(path.relative_to(ROOT)), (match["why"] or "").strip()
            yield Block(page, line, match["language"], match["text"], why)


def commands(program: str | None = None) -> list[Command]:
    """Those of all blocks that are run, or of them those of one program."""
    found = [
        Command(block.place, tuple(shlex.split(line, comments=True)))
        for block in blocks()
        if block.language == "sh" and not block.why_not
        for line in block.text.replace("\\\n", " ").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    return [command for command in found if program in (None, command.words[0])]
