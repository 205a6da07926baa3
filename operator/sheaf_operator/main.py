"""The process: `python -m sheaf_operator`, or `kopf run -A -m sheaf_operator.main`."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import resource
import signal
import sys
import time
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

import kopf
import uvloop

from sheaf_operator import handlers  # noqa: F401  registers itself with kopf
from sheaf_operator.cluster.client import load_configuration
from sheaf_operator.cluster.errors import NoConfiguration
from sheaf_operator.settings import Settings

log = logging.getLogger(__name__)
MOST_FAILURES = 16  # counted in a row: the delay has reached its cap long before
Result = TypeVar("Result")


class JsonLines(logging.Formatter):
    """One JSON object per line, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # kopf reports each watch event at debug and each reconnection at info.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kubernetes.aio.config").setLevel(logging.ERROR)  # NoConfiguration says it better


async def run(settings: Settings) -> bool:
    """Until SIGTERM or SIGINT. Whether the operator ended in good order.

    A watch that ends with an error takes kopf with it, such as what an API server says whose store is away or
    that knows a kind no more. Everything then begins anew here: the kubelet would wait up to five minutes.
    """
    failures = 0
    while True:
        began = time.monotonic()
        try:
            why = await _run_once(settings)
        except Exception as error:
            failures = 0 if time.monotonic() - began > settings.retry_cap else failures
            delay = min(settings.retry_cap, settings.retry_base * 2.0**failures)
            failures = min(failures + 1, MOST_FAILURES)
            log.warning("watching ended: %s: %s; anew in %.1f s", type(error).__name__, error, delay)
            if await _asked_within(delay):
                return True
            continue
        if why != "new kinds":
            return why == "asked"
        log.info("kinds have come that were missing: starting anew to watch them")


async def _asked_within(delay: float) -> bool:
    """Wait; whether SIGTERM or SIGINT came meanwhile, which kopf heeds only while it runs."""
    asked, loop = asyncio.Event(), asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, asked.set)
    try:
        async with asyncio.timeout(delay):
            return await asked.wait()
    except TimeoutError:
        return False
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _run_once(settings: Settings) -> Literal["asked", "failed", "new kinds"]:
    """Why it ended."""
    stop, failed, new_kinds = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def on_failure() -> None:
        failed.set()
        stop.set()

    def on_new_kinds() -> None:
        new_kinds.set()
        stop.set()

    memo = kopf.Memo(settings=settings, on_failure=on_failure, on_new_kinds=on_new_kinds)
    # Left to itself, kopf asks for the user's name, which a container's numeric user does not have.
    identity: Any = settings.identity
    await kopf.operator(
        identity=identity,
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
        standalone=True,
        memo=memo,
        stop_flag=stop,
    )
    if failed.is_set():
        return "failed"
    return "new kinds" if new_kinds.is_set() else "asked"


def allow_open_files() -> None:
    """As many as the system lets us: each pod has a connection of its own."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def collect_garbage_seldom() -> None:
    """What is kept are trees of JSON without cycles; Python would look for some longer than it reads them."""
    gc.set_threshold(50_000)


def in_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """In uvloop: most of the work is many small requests, which asyncio's own loop makes dearer."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def main() -> None:
    allow_open_files()
    collect_garbage_seldom()
    try:
        settings = Settings.from_env()
        configure_logging(settings.log_level)
        in_loop(load_configuration())  # kopf would retry for ever what nobody will mend
    except (ValueError, NoConfiguration) as error:
        sys.exit(f"sheaf-operator: {error}")
    sys.exit(0 if in_loop(run(settings)) else 1)
