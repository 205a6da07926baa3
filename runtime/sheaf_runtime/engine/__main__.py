"""The engine core process: ``python -m sheaf_runtime.engine --socket FD``.

Reads one ``EngineConfig`` as a line of JSON from stdin and keeps reading: anything more asks for the state in
the log, since no step was heard of for long; end of file means that the API process is gone, and this process
ends with it. Signals are ignored: the API process decides about drains.
Exit codes: 0 told to end, 1 failed, 2 wrong configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass

import msgspec

from sheaf_runtime.config import EngineConfig, check_config
from sheaf_runtime.engine.core import EngineCore
from sheaf_runtime.engine.io import Channel, EngineServer
from sheaf_runtime.engine.kv_publisher import KVEventPublisher
from sheaf_runtime.engine.state import describe, where

PR_SET_PDEATHSIG = 1


@dataclass
class _Watched:
    """What is looked at when the engine makes no progress: the ``thread`` it runs on, and its ``core``."""

    thread: int
    core: EngineCore | None = None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sheaf_runtime.engine", allow_abbrev=False)
    parser.add_argument("--socket", type=int, required=True, help="descriptor of a listening Unix socket")
    listener = parser.parse_args(argv).socket
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="engine: %(message)s")
    # Read by libgomp when torch is imported. Its own default spins for milliseconds between operations, which
    # ruins everybody on a machine that is shared; this covers the gaps within a step.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    imports = threading.Thread(target=_import_worker, daemon=True)
    imports.start()

    line = sys.stdin.buffer.readline()
    if not line:  # the API process has ended before there was a model
        return 0
    try:
        config = msgspec.json.decode(line, type=EngineConfig)
    except msgspec.DecodeError as error:
        print(f"engine: bad configuration on stdin: {error}", file=sys.stderr, flush=True)
        return 2
    watched = _Watched(threading.get_ident())
    threading.Thread(target=_obey_stdin, args=(watched,), daemon=True).start()
    channel = Channel(listener)
    try:
        imports.join()
        return _serve(config, channel, watched)
    finally:
        channel.close()


def _serve(config: EngineConfig, channel: Channel, watched: _Watched) -> int:
    """Load, warm up, serve until something breaks."""
    server = None
    try:
        check_config(config)
        # Imported late: it takes seconds, and the socket must be there at once.
        from sheaf_runtime.worker.local import LocalExecutor

        kv_events = config.kv_events_config
        kv_publisher = KVEventPublisher(kv_events) if kv_events.enabled else None
        executor = LocalExecutor(config)
        executor.warm_up()
        watched.core = EngineCore(executor, config)
        server = EngineServer(watched.core, channel, kv_publisher=kv_publisher)
        gc.collect()
        gc.freeze()
        server.run()
    except Exception as error:
        message = str(error) or type(error).__name__
        print(f"engine: {message}", file=sys.stderr, flush=True)
        misconfigured = server is None and isinstance(error, (ValueError, OSError))
        if not misconfigured:
            traceback.print_exc()
        channel.fail(server.clients if server else set(), message)
        return 2 if misconfigured else 1
    return 0


def _import_worker() -> None:
    """What takes longest to start, while the configuration is still awaited."""
    with contextlib.suppress(Exception):  # _serve meets it again, and tells
        import sheaf_runtime.worker.local  # noqa: F401


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, even while it is deep in native code."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _obey_stdin(watched: _Watched) -> None:
    """Nothing of this process outlives it, so it may end at any point."""
    while os.read(0, 65536):
        try:
            state = "loading" if watched.core is None else describe(watched.core, time.time())
        except Exception as error:  # it moves after all
            state = f"not to be read: {error!r}"
        print(f"engine: state: {state}\n{where(watched.thread)}", file=sys.stderr, flush=True)
    os._exit(0)


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # a device thread that hangs must not keep the process
