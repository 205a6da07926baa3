"""``sheaf serve`` with a model of the hub: the server answers probes while it downloads, ends cleanly at any
moment of it, and serves what came."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from local_hub import LocalHub, local_hub
from model_folders import byte_level, write_folder
from serving import Served, serving, wait_for
from sheaf_runtime.server.launch import main
from tiny_gguf import write_gguf

WEIGHTS = {"model.safetensors": b"w" * 100_000}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    folder = write_folder(tmp_path / "source", byte_level())
    with local_hub() as hub:
        hub.add("org/model", {path.name: path.read_bytes() for path in folder.iterdir()} | WEIGHTS)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        yield hub


def serving_hub(model: str, tmp_path: Path, *flags: str, **options: Any) -> AbstractContextManager[Served]:
    return serving(model, tmp_path, *flags, **options)  # type: ignore[arg-type]


def half_there(tmp_path: Path) -> list[Path]:
    return list(tmp_path.glob("home/hub/**/*.incomplete"))


def test_a_model_by_name_is_downloaded_while_probes_are_answered(hub: LocalHub, tmp_path: Path) -> None:
    hub.held = "model.safetensors"
    with serving_hub("org/model", tmp_path) as server:
        assert hub.reached.wait(60)
        assert server.status("/health") == 200
        assert server.status("/ready") == 503
        assert half_there(tmp_path)
        hub.release.set()
        server.wait_ready()
        models = httpx.get(f"{server.url}/v1/models").json()["data"]
        assert [(row["id"], row["root"]) for row in models] == [("org/model", "org/model")]
        body = {"model": "org/model", "prompt": "abc", "max_tokens": 2}
        answer = httpx.post(f"{server.url}/v1/completions", json=body).json()
        assert answer["model"] == "org/model"
        server.terminate(signal.SIGINT)
        assert server.wait_exit() == 0
        output = server.output()
    commit = hub.repos["org/model"].revisions["main"]
    assert f"downloading org/model at commit {commit} to {tmp_path}/home/hub: 1 files, 0.00 GB" in output
    assert "Traceback" not in output
    with serving_hub("org/model", tmp_path, "--served-model-name", "mine", "--revision", commit) as server:
        server.wait_ready()
        assert [row["id"] for row in httpx.get(f"{server.url}/v1/models").json()["data"]] == ["mine"]
        assert "downloading" not in server.output()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_during_the_download_leaves_nothing_half_done(
    hub: LocalHub, tmp_path: Path, signum: signal.Signals
) -> None:
    hub.held = "model.safetensors"
    with serving_hub("org/model", tmp_path) as server:
        assert hub.reached.wait(60)
        wait_for(lambda: half_there(tmp_path), "a file that is half there")
        children = server.children()
        server.terminate(signum)
        assert server.wait_exit() == (-signum if signum is signal.SIGKILL else 0)
        wait_for(lambda: not half_there(tmp_path), "the half file to be gone")
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "the download to end")
        assert "Traceback" not in server.output()


def test_what_cannot_be_had_ends_the_server_with_one_line(hub: LocalHub, tmp_path: Path) -> None:
    with serving_hub("org/modle", tmp_path) as server:
        assert server.wait_exit() == 2
        output = server.output()
    assert "there is no folder org/modle here" in output
    assert "Traceback" not in output


def test_what_came_from_the_hub_is_served_by_the_engine(
    hub: LocalHub, tmp_path: Path, tiny_llama: Any
) -> None:
    """Shards behind links in the cache, and one of several GGUF files of the same model: the same tokens."""
    file = tmp_path / "tiny.gguf"
    write_gguf(tiny_llama(), file)
    hub.add("org/quants", {"tiny-F16.gguf": file.read_bytes(), "tiny-Q2_K.gguf": b"never"})
    hub.add("org/shards", {path.name: path.read_bytes() for path in tiny_llama().iterdir()})
    body = {"prompt": [5, 6, 7], "max_tokens": 8, "temperature": 0, "return_token_ids": True}
    flags = ("--num-gpu-blocks-override", "40")
    with (
        serving_hub("org/quants:F16", tmp_path, *flags, real=True) as quants,
        serving_hub("org/shards", tmp_path, *flags, real=True) as shards,
    ):
        answers = []
        for server in (quants, shards):
            server.wait_ready()
            answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
            answers.append(answer["choices"][0]["token_ids"])
        assert answers[0] == answers[1]
        assert len(answers[0]) == 8
        assert quants.status("/v1/models/org/quants:F16") == 200
    assert not any("Q2_K" in request for request in hub.requests if "resolve" in request)


def test_the_revision_of_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--revision", "main"]) == 2
    assert "--revision is for a model of the hub" in capsys.readouterr().err
    assert main(["org/model", "--revision", "a b"]) == 2
    assert "a branch, a tag or a commit" in capsys.readouterr().err
