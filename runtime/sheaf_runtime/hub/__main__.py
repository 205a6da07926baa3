"""The download's process: an ``Order`` as a line of JSON on stdin, the path or the problem as the only line
on stdout, and exit status 0 or 2. It is a process of its own so that it can be ended at any moment, which the
threads of the hub's library cannot."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
from typing import Any

import msgspec

from sheaf_runtime.hub.errors import HubError
from sheaf_runtime.hub.name import Order

PR_SET_PDEATHSIG = 1


def main() -> int:
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the parent's to answer
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    line = sys.stdin.buffer.readline()
    if not line:
        return 2  # the parent has gone meanwhile
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for every request
    # Nobody is told more than what is downloaded, unless the user says so.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Imported only now: half a second, in which a signal may come.
    from sheaf_runtime.hub.download import download

    logging.getLogger("huggingface_hub").handlers.clear()  # ours has its lines already

    try:
        answer, status = download(msgspec.json.decode(line, type=Order)), 0
    except HubError as error:
        answer, status = str(error), 2
    print(answer.replace("\n", " "), flush=True)
    return status


def _leave(*_: Any) -> None:
    """What is half there is of no use to a later start, which would begin anew beside it."""
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if path.endswith(".incomplete"):
                os.unlink(path)
    os._exit(0)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads of a download that failed may still wait for the network
