"""Work that anybody can cause makes way for the engine's threads, which decide when all get their tokens."""

from __future__ import annotations

import os
import sys
import threading

LOW = 10  # what the kernel gives a tenth of the time that a computing thread gets


def make_way() -> None:
    """Of this thread only, which Linux knows, and of those that it starts. In a process with others nothing
    may run in it that keeps the interpreter's lock."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW)
