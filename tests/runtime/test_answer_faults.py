"""A failure in what becomes of one request's tokens ends that request with a clear word, and no other.

The faults are planted in a real server's API process, each where a request carries its mark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Served, free_port

FAULTS = """
import sys
from sheaf_runtime.server.logprobs import LogprobsWriter
from sheaf_runtime.text.detokenizer import Detokenizer
from sheaf_runtime.text.stops import StopStrings

def plant(owner, name, marked):
    original = getattr(owner, name)
    def failing(self, first, *args, **more):
        if marked(self, first):
            raise ValueError("a planted fault")
        return original(self, first, *args, **more)
    setattr(owner, name, failing)

plant(Detokenizer, "push", lambda self, ids: 100 in ids)
plant(StopStrings, "push", lambda self, piece: "planted" in self._stops)
plant(LogprobsWriter, "_name", lambda self, id_: id_ == 101)
plant(LogprobsWriter, "_bytes", lambda self, id_: id_ == 101)

from sheaf_runtime.cli import end_on_signals
end_on_signals()
from sheaf_runtime.server.launch import main
sys.exit(main(sys.argv[1:]))
"""
CALM: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
MARKS: dict[str, dict[str, Any]] = {
    "detokenizing": {"logit_bias": {"100": 100}},
    "stop strings": {"stop": ["planted"]},
    "logprobs": {"logit_bias": {"101": 100}},
}


@pytest.fixture(scope="module")
def served(tiny_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    port, log = free_port(), tmp_path_factory.mktemp("out") / "log"
    flags = ["--host", "127.0.0.1", "--port", str(port), "--num-gpu-blocks-override", "100"]
    command = [sys.executable, "-c", FAULTS, str(tiny_llama()), *flags, "--dtype", "float32"]
    with log.open("wb") as out:
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
    try:
        server = Served(process, port, log)
        server.wait_ready()
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("place", MARKS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
def test_the_request_ends_alone(served: Served, place: str, stream: bool, chat: bool) -> None:
    path = f"{served.url}/v1/{'chat/' if chat else ''}completions"
    prompt: dict[str, Any] = (
        {"messages": [{"role": "user", "content": "pages"}], "logprobs": True}
        if chat
        else {"prompt": [5, 6, 7], "logprobs": 1}
    )
    neighbour = CALM | {"prompt": [8] * 9, "max_tokens": 40}
    calm = httpx.post(f"{served.url}/v1/completions", json=neighbour, timeout=60).json()["choices"][0]
    beside: list[Any] = []

    def run() -> None:
        beside.append(httpx.post(f"{served.url}/v1/completions", json=neighbour, timeout=60).json())

    thread = threading.Thread(target=run)
    thread.start()
    answer = httpx.post(path, json=CALM | prompt | MARKS[place] | {"stream": stream}, timeout=60)
    thread.join()
    if stream:
        assert answer.status_code == 200
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert lines.pop() == "[DONE]"
        error = json.loads(lines.pop())["error"]
        reasons = [c["finish_reason"] for line in lines for c in json.loads(line)["choices"]]
    else:
        assert answer.status_code == 500
        error = answer.json()["error"]
        reasons = [c["finish_reason"] for c in answer.json()["choices"]]
    assert reasons[-1] == "error"
    assert "a planted fault" in error["message"]
    assert error["code"] == "request_failed"
    assert beside[0]["choices"][0]["text"] == calm["text"]
    assert served.status("/health") == 200
    assert served.metric("vllm:num_requests_running") == 0
