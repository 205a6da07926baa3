"""SIGTERM makes the server lame, then it refuses, then it is gone: nothing that a client sent is lost."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from model_folders import byte_level, write_folder
from serving import serving, wait_for

SHORT = {"prompt": "abc", "max_tokens": 3}
LONG = {"prompt": "abc", "max_tokens": 60, "ignore_eos": True}
SLOW = {"step_seconds": 0.05}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"), byte_level())


def events(response: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in response.iter_lines() if line]


def test_lame_duck_then_refusal_then_exit(folder: Path, tmp_path: Path) -> None:
    flags = ("--lame-duck", "2", "--drain-timeout", "8")
    with serving(folder, tmp_path, *flags, fake={"step_seconds": 0.1}) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url) as client:
            with client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as running:
                lines = running.iter_lines()
                next(lines)
                server.terminate()
                wait_for(lambda: server.status("/ready") == 503, "/ready to fail")
                assert server.status("/health") == 200
                assert server.metric("sheaf:draining") == 1
                late = httpx.post(f"{server.url}/v1/completions", json=SHORT)
                assert late.status_code == 200
                assert late.headers["connection"] == "close"
                assert late.json()["choices"][0]["finish_reason"] == "length"

                def refused() -> httpx.Response | None:
                    response = httpx.post(f"{server.url}/v1/completions", json=SHORT)
                    return response if response.status_code == 503 else None

                response = wait_for(refused, "the refusal")
                assert int(response.headers["retry-after"]) >= 1
                assert response.headers["connection"] == "close"
                assert response.json()["error"]["code"] == "draining"
                rest = [line.removeprefix("data: ") for line in lines if line]
                assert rest[-1] == "[DONE]"
                assert json.loads(rest[-2])["choices"][0]["finish_reason"] == "length"
            assert server.wait_exit(20) == 0


def test_lame_for_as_long_as_new_clients_come(folder: Path, tmp_path: Path) -> None:
    """A load balancer that hears late, which a test on a busy machine had: they were refused."""
    with serving(folder, tmp_path, "--lame-duck", "1") as server:
        server.wait_ready()
        server.terminate()
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert httpx.post(f"{server.url}/v1/completions", json=SHORT).status_code == 200
        assert server.wait_exit(20) == 0


def test_a_connection_that_was_never_told_is_served_at_the_end_too(folder: Path, tmp_path: Path) -> None:
    """It was idle in a client's pool all the time: no answer could say that it would be closed."""
    flags = ("--lame-duck", "0.2", "--drain-timeout", "20")
    with serving(folder, tmp_path, *flags, fake={"step_seconds": 0.05}) as server:
        server.wait_ready()
        with httpx.Client(base_url=server.url) as idle:
            assert "connection" not in idle.post("/v1/completions", json=SHORT).headers
            long = LONG | {"stream": True}
            with httpx.stream("POST", f"{server.url}/v1/completions", json=long) as running:
                server.terminate()
                health = f"{server.url}/health"
                wait_for(lambda: httpx.get(health).json()["status"] == "refusing", "the end of the lame duck")
                refusal = httpx.post(f"{server.url}/v1/completions", json=SHORT)
                assert (refusal.status_code, refusal.json()["error"]["code"]) == (503, "draining")
                last = idle.post("/v1/completions", json=SHORT)
                assert last.status_code == 200
                assert last.headers["connection"] == "close"
                assert events(running)[-1] == "[DONE]"
        assert server.wait_exit(20) == 0


def test_exit_comes_as_soon_as_the_lame_duck_is_over(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path, "--lame-duck", "0.5") as server:
        server.wait_ready()
        began = time.monotonic()
        server.terminate()
        assert server.wait_exit(20) == 0
        assert 0.5 <= time.monotonic() - began < 5


@pytest.mark.parametrize("stream", [False, True])
def test_drain_timeout_aborts_what_still_runs(folder: Path, tmp_path: Path, stream: bool) -> None:
    flags = ("--lame-duck", "0.1", "--drain-timeout", "0.5")
    with serving(folder, tmp_path, *flags, fake=SLOW) as server:
        server.wait_ready()
        answers: list[httpx.Response] = []
        body = LONG | {"max_tokens": 500, "stream": stream}
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{server.url}/v1/completions", json=body, timeout=20))
        )
        thread.start()
        wait_for(lambda: server.metric("vllm:num_requests_running") == 1, "it to run")
        began = time.monotonic()
        server.terminate()
        assert server.wait_exit(20) == 0
        assert 0.5 <= time.monotonic() - began < 5
        thread.join()
        if stream:
            lines = [line.removeprefix("data: ") for line in answers[0].text.splitlines() if line]
            assert lines[-1] == "[DONE]"
            choice = json.loads(lines[-2])["choices"][0]
        else:
            choice = answers[0].json()["choices"][0]
            assert choice["text"].startswith("abcabc")
        assert answers[0].status_code == 200
        assert choice["finish_reason"] == "abort"


def test_pooled_connections_lose_no_request(folder: Path, tmp_path: Path) -> None:
    """Clients send all the time on connections that they keep, until an answer tells them to close."""
    with serving(folder, tmp_path, "--lame-duck", "4", fake={"step_seconds": 0.005}) as server:
        server.wait_ready()
        problems: list[str] = []
        served: list[int] = []

        def client(index: int) -> None:
            body = SHORT | {"stream": index % 2 == 0, "max_tokens": 20, "ignore_eos": True}
            with httpx.Client(base_url=server.url, timeout=20) as http:
                told = False
                while not told:
                    try:
                        response = http.post("/v1/completions", json=body)
                    except httpx.TransportError as error:
                        problems.append(repr(error))
                        return
                    told = response.headers.get("connection") == "close"
                    served.append(response.status_code)
                    if body["stream"] and "[DONE]" not in response.text:
                        problems.append(response.text)

        threads = [threading.Thread(target=client, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(served) > 50, "some load")
        server.terminate()
        assert server.wait_exit() == 0
        for thread in threads:
            thread.join()
        assert problems == []
        assert set(served) == {200}
        assert "ERROR" not in server.output()


def test_a_second_signal_exits_at_once(folder: Path, tmp_path: Path) -> None:
    for first, second in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)):
        with serving(folder, tmp_path, "--lame-duck", "60") as server:
            server.wait_ready()
            core = Path(f"/proc/{server.core_pid()}")
            server.terminate(first)
            wait_for(lambda server=server: server.status("/ready") == 503, "the drain")
            server.terminate(second)
            assert server.wait_exit(10) == 128 + second
            wait_for(lambda core=core: not core.exists(), "the core to end")


def test_ctrl_c_needs_no_lame_duck(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path, "--lame-duck", "60", fake=SLOW) as server:
        server.wait_ready()
        answers: list[Any] = []
        thread = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=20))
        )
        thread.start()
        wait_for(lambda: server.metric("vllm:num_requests_running") == 1, "it to run")
        server.terminate(signal.SIGINT)
        assert server.wait_exit(10) == 0
        thread.join()
        assert answers[0].json()["choices"][0]["finish_reason"] == "length"


def test_a_core_that_dies_while_draining(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path, "--lame-duck", "60", fake=SLOW | {"exit_at_step": 10}) as server:
        server.wait_ready()
        with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}) as stream:
            server.terminate()
            assert "engine core has died" in events(stream)[-1]
        assert server.wait_exit(20) == 1
