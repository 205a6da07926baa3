"""What is said of GGUF files by processes that never read one, and so get along without numpy."""

from __future__ import annotations

MAGIC = b"GGUF"


class GGUFError(ValueError):
    """The file cannot be served; the message says why."""
