"""Clients that go away, and engine cores that die, fail or hang.

Requests in flight learn it; probes and the exit status tell it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from model_folders import byte_level, write_folder
from serving import Served, serving, wait_for
from sheaf_runtime.config import EngineConfig, ServerConfig
from sheaf_runtime.server.model_folder import ModelFolderError, SamplingDefaults, load_folder

FOREVER = {"prompt": "abc", "max_tokens": 500, "ignore_eos": True}
SLOW = {"step_seconds": 0.05}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("model"), byte_level())


def streamed_error(lines: Iterator[str]) -> dict[str, Any]:
    """Reads a stream to its end, which must be an error event and no [DONE]."""
    events = [line.removeprefix("data: ") for line in lines if line]
    assert "[DONE]" not in events
    error: dict[str, Any] = json.loads(events[-1])["error"]
    return error


@pytest.mark.parametrize(
    ("stream", "admitted", "path"),
    [
        *((stream, admitted, "/v1/completions") for stream in (False, True) for admitted in (True, False)),
        (True, True, "/invocations"),
    ],
)
def test_a_closed_connection_aborts_the_request(
    folder: Path, tmp_path: Path, stream: bool, admitted: bool, path: str
) -> None:
    log = tmp_path / "core.log"
    with serving(folder, tmp_path, fake=SLOW | {"log": str(log)}) as server:
        server.wait_ready()
        body = json.dumps(FOREVER | {"stream": stream, "n": 2}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(
                b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (path.encode(), len(body), body)
            )
            if admitted:
                wait_for(lambda: server.metric("vllm:num_requests_running") == 2, "both to run")
                if stream:
                    assert client.recv(12) == b"HTTP/1.1 200"
        wait_for(lambda: log.exists() and log.read_text().count("abort ") == 2, "the aborts")
        wait_for(lambda: server.metric("vllm:num_requests_running") == 0, "an idle engine")
        wait_for(lambda: 'finished_reason="abort"} 2' in metrics(server), "the metric")
        assert server.metric("sheaf:blocks_live") == 0
        assert server.status("/ready") == 200


def gone(process: Path) -> bool:
    """Whether a process (its folder in /proc) has ended."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def metrics(server: Served) -> str:
    response = server.get("/metrics")
    assert response is not None
    return response.text


def test_a_full_queue_is_429(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path, fake=SLOW | {"max_running": 1, "max_queued": 1}) as server:
        server.wait_ready()
        with (
            httpx.stream("POST", f"{server.url}/v1/completions", json=FOREVER | {"stream": True}) as first,
            httpx.stream("POST", f"{server.url}/v1/completions", json=FOREVER | {"stream": True}) as second,
        ):
            assert (first.status_code, second.status_code) == (200, 200)
            wait_for(lambda: server.metric("vllm:num_requests_waiting") == 1, "one to wait")
            assert server.metric("vllm:num_requests_running") == 1
            assert server.metric("sheaf:queued_tokens") == 4
            assert server.metric("sheaf:oldest_wait_seconds") > 0
            response = httpx.post(f"{server.url}/v1/completions", json=FOREVER | {"stream": True})
            assert response.status_code == 429
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]["code"] == "queue_full"
            # One of several choices that does not fit leaves none behind.
            assert httpx.post(f"{server.url}/v1/completions", json=FOREVER | {"n": 3}).status_code == 429
            assert server.metric("vllm:num_requests_running") == 1
        wait_for(lambda: server.metric("vllm:num_requests_running") == 0, "an idle engine")
        assert server.metric("vllm:num_requests_waiting") == 0


@pytest.mark.parametrize(
    ("fake", "flags", "reason"),
    [
        ({"exit_at_step": 3}, (), "the engine core has died: exit status 7"),
        ({"garble_at_step": 3}, (), "the engine core sent what is no message"),
        ({"fail_at_step": 3}, (), "the engine core failed: the device is on fire"),
        ({"hang_at_step": 3}, ("--stall-timeout", "0.5"), "made no progress"),
    ],
)
def test_a_lost_engine(
    folder: Path, tmp_path: Path, fake: dict[str, Any], flags: tuple[str, ...], reason: str
) -> None:
    with serving(folder, tmp_path, *flags, fake=SLOW | fake) as server:
        server.wait_ready()
        with httpx.stream("POST", f"{server.url}/v1/completions", json=FOREVER | {"stream": True}) as stream:
            assert stream.status_code == 200
            answer = httpx.post(f"{server.url}/v1/completions", json=FOREVER)
            assert answer.status_code == 500
            assert reason in answer.json()["error"]["message"]
            assert reason in streamed_error(stream.iter_lines())["message"]
        health = server.get("/health")
        assert health is not None
        assert health.status_code == 503
        assert reason in health.text
        assert server.status("/ready") == 503
        late = httpx.post(f"{server.url}/v1/completions", json=FOREVER)
        assert late.status_code == 500
        assert server.metric("vllm:num_requests_running") == 0
        assert server.wait_exit() == 1
        assert reason in server.output()


def test_the_openai_client_sees_the_error_in_a_stream(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path, "--served-model-name", "m", fake=SLOW | {"exit_at_step": 3}) as server:
        server.wait_ready()
        with (
            openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client,
            pytest.raises(openai.APIError, match="engine core has died"),
        ):
            for _ in client.completions.create(model="m", prompt="abc", max_tokens=500, stream=True):
                pass


def test_a_killed_core_is_noticed_at_once_though_nothing_runs(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path) as server:
        server.wait_ready()
        began = time.monotonic()
        os.kill(server.core_pid(), signal.SIGKILL)
        wait_for(lambda: server.status("/health") == 503, "/health to fail")
        assert time.monotonic() - began < 1
        assert server.wait_exit() == 1
        assert "killed by SIGKILL" in server.output()


@pytest.mark.parametrize("loaded", [False, True])
def test_a_killed_server_leaves_nothing_behind(
    folder: Path, tmp_path: Path, loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with serving(folder, tmp_path, fake={} if loaded else {"load_seconds": 600}) as server:
        if loaded:
            server.wait_ready()
        wait_for(server.children, "the core")
        core = server.core_pid()
        server.terminate(signal.SIGKILL)
        server.wait_exit()
        wait_for(lambda: not Path(f"/proc/{core}").exists(), "the core to end")
        assert list((tmp_path / "tmp").iterdir()) == []


def test_an_idle_engine_does_not_stall(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path, "--stall-timeout", "0.2") as server:
        server.wait_ready()
        for _ in range(3):
            assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}).status_code == 200
            assert server.metric("sheaf:seconds_since_last_progress") == 0
            time.sleep(0.3)  # longer than the timeout: this silence is what is tested
        assert server.status("/health") == 200


def test_a_stopped_core_stalls_before_it_accepts(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path, "--stall-timeout", "0.5") as server:
        server.wait_ready()
        core = server.core_pid()
        os.kill(core, signal.SIGSTOP)
        answer = httpx.post(f"{server.url}/v1/completions", json=FOREVER | {"stream": True}, timeout=10)
        assert answer.status_code == 500
        assert "no progress" in answer.json()["error"]["message"]
        assert server.wait_exit() == 1
        assert not Path(f"/proc/{core}").exists()


def test_a_core_that_cannot_load(folder: Path, tmp_path: Path) -> None:
    with serving(
        folder, tmp_path, fake={"fail_loading": "8 GiB are missing, choose a smaller one"}
    ) as server:
        assert server.wait_exit() == 2
        assert "choose a smaller one" in server.output()


def test_an_unreadable_tokenizer_is_a_configuration_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", byte_level())
    (folder / "tokenizer.json").write_text("{}")
    with serving(folder, tmp_path, fake={"load_seconds": 60}) as server:
        assert server.wait_exit() == 2
        assert "tokenizer.json cannot be read" in server.output()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", -1),
        ("top_p", 0),
        ("top_p", True),
        ("top_k", 1.5),
        ("top_k", -2),
    ],
)
def test_default_sampling_that_cannot_be_is_refused(tmp_path: Path, name: str, value: object) -> None:
    folder = write_folder(tmp_path / "model", byte_level())
    (folder / "generation_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(ModelFolderError, match=f"generation_config.json: {name} must be .* got {value!r}"):
        load_folder(EngineConfig(model=str(folder)), ServerConfig())


def test_whose_defaults_count_is_a_flag(tmp_path: Path) -> None:
    """vLLM's: "auto" merges what is overridden, "vllm" has nothing else, a folder stands for the model's."""
    folder = write_folder(tmp_path / "model", byte_level())
    (folder / "generation_config.json").write_text('{"temperature": 0.7, "top_k": 5, "max_new_tokens": 9}')
    (other := tmp_path / "other").mkdir()
    (other / "generation_config.json").write_text('{"top_p": 0.5}')
    overridden = ServerConfig(override_generation_config={"top_k": 3, "min_p": 0.1})

    def defaults(source: str, server: ServerConfig) -> SamplingDefaults:
        return load_folder(EngineConfig(model=str(folder), generation_config=source), server).defaults

    assert defaults("auto", ServerConfig()) == SamplingDefaults(temperature=0.7, top_k=5, max_new_tokens=9)
    assert defaults("auto", overridden) == SamplingDefaults(
        temperature=0.7, top_k=3, min_p=0.1, max_new_tokens=9
    )
    assert defaults("vllm", overridden) == SamplingDefaults(top_k=3, min_p=0.1)
    assert defaults(str(other), ServerConfig()) == SamplingDefaults(top_p=0.5)
    with pytest.raises(ModelFolderError, match=r"--generation-config .*/none: .* does not exist"):
        defaults(str(tmp_path / "none"), ServerConfig())


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("chat_template.jinja", "cp1252"), ("tokenizer_config.json", "cp1252"), ("option.jinja", "utf-16")],
)
def test_a_file_in_another_encoding_is_a_configuration_error(
    tmp_path: Path, name: str, encoding: str
) -> None:
    """It used to leave a server that said "loading" for ever."""
    folder = write_folder(tmp_path / "model", byte_level(), note="é")
    text = '{"note": "é"}' if name.endswith("json") else "{# é #}{{ messages[0]['content'] }}"
    path = (tmp_path if name == "option.jinja" else folder) / name
    path.write_bytes(text.encode(encoding))
    flags = ("--chat-template", str(path)) if name == "option.jinja" else ()
    with serving(folder, tmp_path, *flags) as server:
        assert server.wait_exit() == 2
        assert f"{path} is not UTF-8" in server.output().splitlines()[-1]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", byte_level())
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", "utf-8-sig")
    with serving(folder, tmp_path) as server:
        server.wait_ready()
        body = {"messages": [{"role": "user", "content": "abc"}]}
        assert httpx.post(f"{server.url}/tokenize", json=body).json()["count"] == 3


def test_the_port_is_open_while_the_core_loads(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path, fake={"load_seconds": 60}) as server:
        assert wait_for(lambda: server.status("/health"), "/health") == 200
        assert server.status("/ready") == 503
        assert server.status("/metrics") == 200
        assert server.status("/v1/models") == 200
        answer = httpx.post(f"{server.url}/v1/completions", json=FOREVER)
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["error"]["code"] == "loading"
        core = server.core_pid()
        server.terminate()
        assert server.wait_exit(5) == 0
        assert not Path(f"/proc/{core}").exists()


def test_sigterm_as_soon_as_the_port_is_open(folder: Path, tmp_path: Path) -> None:
    def connected() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", server.port)) == 0

    with serving(folder, tmp_path, fake={"load_seconds": 60}) as server:
        wait_for(connected, "the port")
        server.terminate()
        assert server.wait_exit(10) == 0
        assert "Traceback" not in server.output()


def test_the_core_ends_with_a_killed_api_process(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path) as server:
        server.wait_ready()
        core = Path(f"/proc/{server.core_pid()}")
        server.process.kill()
        server.process.wait()
        wait_for(
            lambda: not core.exists() or "Z" in (core / "stat").read_text().split()[2], "the core to end"
        )


def test_running_out_of_descriptors_is_waited_out(folder: Path, tmp_path: Path) -> None:
    """A listening socket that cannot be served stays readable: looking at it all the time would be a loop."""
    with serving(folder, tmp_path) as server:
        server.wait_ready()
        pid = server.process.pid
        in_use = len(os.listdir(f"/proc/{pid}/fd"))
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (in_use + 4, hard))
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(12)]
        wait_for(lambda: server.output().count("cannot accept") >= 3, "three attempts")
        assert server.output().count("cannot accept") < 20
        for client in clients[2:]:
            client.close()
        assert wait_for(lambda: server.status("/health"), "/health") == 200
        for client in clients:
            client.close()
        server.terminate(signal.SIGINT)
        assert server.wait_exit() == 0
