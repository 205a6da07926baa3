"""Looking for processes that should be gone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal


def processes_that_mention(text: str, where: Literal["cmdline", "environ"] = "cmdline") -> list[str]:
    """The command lines of all other processes with ``text`` in their command line or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text in (entry / where).read_text(errors="replace"):
                    found.append((entry / "cmdline").read_text(errors="replace").replace("\0", " "))
            except OSError:
                continue
    return found
