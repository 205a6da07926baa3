"""The download of a model from the hub, as a child process of the server."""

from __future__ import annotations

import asyncio
import contextlib
import sys

import msgspec

from sheaf_runtime.hub.errors import HubError
from sheaf_runtime.hub.name import Order
from sheaf_runtime.server.core_process import describe_exit

PATIENCE = 5.0  # seconds to leave nothing half done


async def download(order: Order) -> str:
    """The model's folder, or its GGUF file, in the hub's cache. A caller that is cancelled ends it.

    Raises ``HubError``.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sheaf_runtime.hub",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate(msgspec.json.encode(order) + b"\n")
    finally:
        await _end(process)
    assert process.returncode is not None
    answer = output.decode(errors="replace").strip()
    if process.returncode == 0 and answer:
        return answer
    raise HubError(answer or f"the download has died: {describe_exit(process.returncode)}")


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), PATIENCE)
    except TimeoutError:
        process.kill()
        await process.wait()
