"""The streaming server: what `kubectl exec`, `attach` and `port-forward` are connected to in the end.

The kubelet asks for a stream by gRPC and gets a URL, good for one use; it then passes the client's upgraded
connection on to that URL, and its bytes come here.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any

from localcluster.cri.process import Process
from localcluster.cri.spdy import Connection, Stream

log = logging.getLogger("cri.streaming")

COMMAND_PROTOCOL = "v4.channel.k8s.io"
FORWARD_PROTOCOL = "portforward.k8s.io"
STREAMS_TIMEOUT_S = 10.0  # for all streams of a command to be opened
LEAVE_TIMEOUT_S = 5.0  # for the client to go once it has everything
_READ = 64 * 1024


@dataclass(frozen=True)
class Wanted:
    """The streams of a command that the client will open, beside that of its result."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool
    input_stays_open: bool = False  # when the client has ended its own

    @property
    def names(self) -> set[str]:
        return {
            "error",
            *(name for name in ("stdin", "stdout", "stderr") if getattr(self, name)),
            *(["resize"] if self.tty else []),
        }


Output = Callable[[bytes], None]
# Starts a command, or joins one, whose output goes to these two; ends that with the block.
Begin = Callable[[Output, Output], AbstractAsyncContextManager[Process]]
Connect = Callable[[int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class StreamingServer:
    def __init__(self) -> None:
        self._handlers: dict[str, tuple[str, Handler]] = {}
        self._base = ""

    async def start(self, address: str) -> None:
        server = await asyncio.start_server(self._serve, address)
        self._base = "http://{}:{}".format(*server.sockets[0].getsockname()[:2])

    def command(self, wanted: Wanted, begin: Begin) -> str:
        """A URL where a command's streams are connected."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _run_command(reader, writer, wanted, begin)

        return self._url(COMMAND_PROTOCOL, handle)

    def forward(self, connect: Connect) -> str:
        """A URL where connections to a pod's ports begin; ``connect`` raises OSError where nobody listens."""

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await _forward(reader, writer, connect)

        return self._url(FORWARD_PROTOCOL, handle)

    def _url(self, protocol: str, handler: Handler) -> str:
        token = secrets.token_urlsafe(16)
        self._handlers[f"/{token}"] = protocol, handler
        return f"{self._base}/{token}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.lower().split("\r\n")
            protocol, handler = self._handlers.pop(head.split()[1], ("", None))
            if handler is None:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            elif "upgrade: spdy/3.1" not in lines or not any(protocol in line for line in lines):
                writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            else:
                writer.write(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
                    + f"X-Stream-Protocol-Version: {protocol}\r\n\r\n".encode()
                )
                await handler(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # the client has gone, or is none
        except Exception:
            log.exception("a stream has failed")
        finally:
            writer.close()


async def _run_command(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wanted: Wanted, begin: Begin
) -> None:
    streams: dict[str, Stream] = {}
    complete = asyncio.Event()

    def opened(stream: Stream) -> None:
        streams[stream.headers.get("streamtype", "")] = stream
        if wanted.names <= streams.keys():
            complete.set()

    connection = Connection(reader, writer, opened)
    served = asyncio.create_task(connection.run())
    try:
        async with asyncio.timeout(STREAMS_TIMEOUT_S):
            await complete.wait()
        output = [streams[name].write if name in streams else _nowhere for name in ("stdout", "stderr")]
        try:
            async with begin(*output) as process:
                status = await _follow(process, streams, served, wanted)
        except Exception as error:
            status = {"status": "Failure", "message": str(error), "reason": "InternalError"}
        streams["error"].write(json.dumps({"metadata": {}, **status}).encode())
        for stream in streams.values():
            stream.end()
        await connection.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(served, LEAVE_TIMEOUT_S)
    finally:
        served.cancel()


async def _follow(
    process: Process, streams: Mapping[str, Stream], served: asyncio.Task[None], wanted: Wanted
) -> dict[str, object]:
    """Pass input and sizes on until the command has ended, or the client has gone; the result."""
    ended = asyncio.create_task(process.wait())
    helpers: list[asyncio.Task[Any]] = [ended]
    if "stdin" in streams:
        helpers.append(asyncio.create_task(_feed(process, streams["stdin"], wanted.input_stays_open)))
    if "resize" in streams:
        helpers.append(asyncio.create_task(_follow_size(process, streams["resize"])))
    try:
        await asyncio.wait({ended, served}, return_when=asyncio.FIRST_COMPLETED)
        return exit_status(ended.result()) if ended.done() else {}
    finally:
        for task in helpers:
            task.cancel()


def exit_status(code: int) -> dict[str, object]:
    """What a client is told of a command's end: a Status, as kubectl reads it."""
    if code == 0:
        return {"status": "Success"}
    return {
        "status": "Failure",
        "reason": "NonZeroExitCode",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }


def _nowhere(_: bytes) -> None:
    pass


async def _feed(process: Process, stdin: Stream, stays_open: bool) -> None:
    while data := await stdin.read():
        await process.write(data)
    if not stays_open:
        process.end_input()


async def _follow_size(process: Process, sizes: Stream) -> None:
    decoder, text = json.JSONDecoder(), ""
    while data := await sizes.read():
        text = (text + data.decode()).lstrip()
        with suppress(json.JSONDecodeError):  # half of one
            size, end = decoder.raw_decode(text)
            text = text[end:]
            process.resize(size["Width"], size["Height"])


async def _forward(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    connect: Connect,
) -> None:
    errors: dict[str, Stream] = {}
    tasks: set[asyncio.Task[None]] = set()

    def opened(stream: Stream) -> None:
        request = stream.headers.get("requestid", "")
        if stream.headers.get("streamtype") == "error":
            errors[request] = stream
        elif error := errors.pop(request, None):  # clients open the error's stream first
            task = asyncio.create_task(_carry(connection, stream, error, connect))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    connection = Connection(reader, writer, opened)
    try:
        await connection.run()
    finally:
        for task in tasks:
            task.cancel()


async def _carry(
    connection: Connection,
    data: Stream,
    error: Stream,
    connect: Connect,
) -> None:
    """One connection of a client's, to its end."""
    port = int(data.headers["port"])
    try:
        reader, writer = await connect(port)
    except OSError as reason:
        error.write(f"failed to connect to localhost:{port} inside the pod: {reason.strerror}".encode())
    else:

        async def send() -> None:
            while received := await data.read():
                writer.write(received)
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        try:
            while received := await reader.read(_READ):
                data.write(received)
                await connection.drain()
        except OSError:  # the pod has broken it; an error would end the client's other connections too
            data.abort()
        finally:
            sending.cancel()
            writer.close()
    data.end()
    error.end()
