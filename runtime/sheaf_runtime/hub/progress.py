"""How far a download is, for logs: a line now and then. Terminals have the bars of the hub's library."""

from __future__ import annotations

import logging
import time
from typing import Any

from huggingface_hub.utils.tqdm import tqdm

logger = logging.getLogger(__name__)
LINE_SECONDS = 10.0
BYTES = "huggingface_hub.snapshot_download"  # the bar of the bytes that are on the disk


class Silence(tqdm):
    """No bar, no line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})  # type: ignore[no-untyped-call]


class Lines(tqdm):
    """A bar of bytes that is drawn as lines of the log, at most one in ``LINE_SECONDS``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._shown = self._began = time.monotonic()
        counts = options.get("name") == BYTES
        super().__init__(*args, **{**options, "disable": not counts})  # type: ignore[no-untyped-call]

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        now = time.monotonic()
        if self.total and now - self._shown >= LINE_SECONDS:
            self._shown = now
            logger.info(
                "downloaded %.2f of %.2f GB (%.0f %%), %.0f MB/s",
                self.n / 1e9,
                self.total / 1e9,
                100 * self.n / self.total,
                self.n / (now - self._began) / 1e6,
            )
        return True

    def close(self) -> None:
        self.disable = True  # there is nothing on a screen to put in order
        super().close()
