"""HTTP by the book: what old clients, probes and other libraries send, byte by byte."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from model_folders import byte_level, write_folder
from serving import Served, serving, wait_for

BODY = json.dumps({"prompt": "abc", "max_tokens": 6, "ignore_eos": True}).encode()
STREAM = json.dumps({"prompt": "abc", "max_tokens": 6, "ignore_eos": True, "stream": True}).encode()
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_folder(tmp_path_factory.mktemp("model"), byte_level())
    with serving(folder, tmp_path_factory.mktemp("out")) as server:
        server.wait_ready()
        yield server


def post(body: bytes, *, version: str = "1.1", more: bytes = b"") -> bytes:
    head = f"POST /v1/completions HTTP/{version}\r\nHost: x\r\nContent-Length: {len(body)}\r\n".encode()
    return head + b"Content-Type: application/json\r\n" + more + b"\r\n" + body


def until_closed(server: Served, request: bytes) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers and the bytes after them, up to the end of the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        sock.sendall(request)
        while piece := sock.recv(65536):
            received += piece
    head, _, rest = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines), rest


def answer(sock: socket.socket) -> tuple[str, bytes]:
    """One answer with a content-length."""
    file = sock.makefile("rb")
    status = file.readline().decode()
    length = 0
    while (line := file.readline()) != b"\r\n":
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return status, file.read(length)


def test_a_stream_to_http_1_0_is_bare_and_ends_with_the_connection(served: Served) -> None:
    status, headers, rest = until_closed(served, post(STREAM, version="1.0"))
    assert " 200 " in status
    assert "transfer-encoding" not in headers
    assert headers["connection"] == "close"
    events = [line for line in rest.split(b"\n") if line]
    assert all(event.startswith(b"data: ") for event in events)
    assert events[-1] == b"data: [DONE]"


def test_http_1_0_without_a_stream(served: Served) -> None:
    more = b"Expect: 100-continue\r\nConnection: keep-alive\r\n"
    status, headers, rest = until_closed(served, post(BODY, version="1.0", more=more))
    assert " 200 " in status
    assert len(rest) == int(headers["content-length"])
    assert json.loads(rest)["choices"][0]["text"]


def test_an_offer_to_upgrade_is_ignored(served: Served) -> None:
    """Java's HttpClient offers h2c with every request on plain text, with its body behind."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        for _ in range(2):
            sock.sendall(post(BODY, more=H2C))
            status, body = answer(sock)
            assert " 200 " in status, body
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n" + H2C + b"\r\n")
        assert " 200 " in answer(sock)[0]
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert " 200 " in answer(sock)[0]


def test_upgrade_in_a_body_is_only_text(served: Served) -> None:
    """A body that comes in a piece of its own may begin like a header."""
    head, end, body = post(b"[1,\nupgrade: 22]").partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(head + end)
        sock.sendall(body)
        status, error = answer(sock)
        assert " 400 " in status
        assert b"not valid JSON" in error
        sock.sendall(post(BODY))
        assert " 200 " in answer(sock)[0]


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", "/version"])
def test_head_is_get_without_the_body(served: Served, path: str) -> None:
    line = f"{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    get, head = until_closed(served, b"GET " + line), until_closed(served, b"HEAD " + line)
    assert head[0] == get[0]
    assert head[1].keys() == get[1].keys()
    assert head[2] == b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET http://x/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
        (b"GET /health HTTP/1.0\r\n\r\n", 200),
        (b"PUT /v1/completions HTTP/1.0\r\nContent-Length: 0\r\n\r\n", 405),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (post(b"{}", version="1.0", more=b"Content-Encoding: gzip\r\n"), 415),
        (b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: close\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nX-Endless: " + b"a" * 100_000, 400),
        (post(BODY, version="1.0", more=b"X-Long: " + b"a" * 60_000 + b"\r\n"), 200),
    ],
)
def test_what_probes_and_strangers_send(served: Served, request_: bytes, status: int) -> None:
    assert f" {status} " in until_closed(served, request_)[0]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["process", "port", "core"])
def test_a_signal_to_the_whole_group_while_loading(
    served: Served, tmp_path: Path, signum: signal.Signals, moment: str
) -> None:
    folder = write_folder(tmp_path / "model", byte_level())
    with serving(folder, tmp_path, fake={"load_seconds": 30}, session=True) as server:
        wait_for(lambda: server.handles(signum), "its handler")
        if moment != "process":
            wait_for(lambda: server.status("/health") == 200, "the port")
        if moment == "core":
            wait_for(server.children, "the core")
        children = server.children()
        os.killpg(server.process.pid, signum)
        assert server.wait_exit(10) == 0
        assert "Traceback" not in server.output()
        for child in children:
            wait_for(lambda child=child: not Path(f"/proc/{child}").exists(), "the core to end")
