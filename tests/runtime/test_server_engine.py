"""The whole path with the real engine core and a tiny random model."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from serving import Served, serving, wait_for

FLAGS = ("--served-model-name", "tiny", "--num-gpu-blocks-override", "1200", "--lame-duck", "0.2")
PROMPT = "A sheaf is a bundle of pages, and the pages of a sheaf are read in the order of the table. " * 2


@pytest.fixture(scope="module")
def model(tiny_llama: Callable[..., Path]) -> Path:
    return tiny_llama(max_position_embeddings=4096)


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(model, tmp_path_factory.mktemp("out"), *FLAGS, real=True) as server:
        server.wait_ready()
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
        yield client


def idle(served: Served) -> bool:
    return served.metric("sheaf:blocks_live") == 0 and served.metric("vllm:num_requests_running") == 0


def test_streams_and_answers_are_the_same_text(client: openai.OpenAI) -> None:
    def answer(prompt: str) -> str:
        return (
            client.completions.create(model="tiny", prompt=prompt, max_tokens=40, temperature=0)
            .choices[0]
            .text
        )

    def stream(prompt: str) -> str:
        chunks = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=40, temperature=0, stream=True
        )
        return "".join(chunk.choices[0].text for chunk in chunks)

    prompts = [PROMPT, "pages", "the order of the table"]
    alone = [answer(prompt) for prompt in prompts]
    with ThreadPoolExecutor(6) as pool:
        together = [*pool.map(stream, prompts), *pool.map(answer, prompts)]
    assert together == alone * 2
    assert all(alone)


def test_usage_and_cached_tokens(client: openai.OpenAI, served: Served) -> None:
    salted = {"cache_salt": "only here"}
    for cached in (False, True):
        answer = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, extra_body=salted)
        assert answer.usage is not None
        details = answer.usage.prompt_tokens_details
        assert details is not None
        assert details.cached_tokens == (answer.usage.prompt_tokens - 1) * cached
        assert answer.usage.prompt_tokens > 16
    wait_for(lambda: idle(served), "an idle engine")


def test_seeds_repeat_and_choices_differ(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str]:
        answer = client.completions.create(model="tiny", prompt="a", max_tokens=20, seed=seed, n=3)
        return [choice.text for choice in answer.choices]

    assert texts(5) == texts(5)
    assert len(set(texts(5))) == 3
    assert texts(5) != texts(6)


def test_a_disconnect_frees_its_blocks(served: Served) -> None:
    body = {"prompt": PROMPT, "max_tokens": 4000, "ignore_eos": True, "stream": True, "n": 4}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body) as stream:
        assert stream.status_code == 200
        lines = stream.iter_lines()  # closes the connection when it is collected
        next(lines)
        wait_for(lambda: served.metric("vllm:num_requests_running") == 4, "all to run")
    wait_for(lambda: idle(served), "an idle engine")


LONG = {"prompt": PROMPT, "max_tokens": 4000, "ignore_eos": True}


def test_a_timeout_is_a_504_and_frees_its_blocks(client: openai.OpenAI, served: Served) -> None:
    """vllm#16391, vllm#14792: the client's own timeout leaves the work to the server."""

    def count() -> float:
        page = served.get("/metrics")
        assert page is not None
        (line,) = [x for x in page.text.splitlines() if "request_success" in x and '"timeout"' in x]
        return float(line.rsplit(" ", 1)[1])

    before = count()
    with pytest.raises(openai.InternalServerError) as raised:
        client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=4000, extra_body={"ignore_eos": True, "timeout": 0.3}
        )
    assert (raised.value.status_code, raised.value.code) == (504, "timeout")
    assert raised.value.type == "timeout_error"
    header = {"X-Request-Timeout": "0.3"}
    for path, body in (
        ("/v1/completions", LONG),
        ("/v1/responses", {"input": PROMPT, "max_output_tokens": 4000, "ignore_eos": True}),
    ):
        answer = httpx.post(f"{served.url}{path}", json=body, headers=header, timeout=60)
        assert answer.status_code == 504, answer.text
        assert answer.json()["error"]["code"] == "timeout"
    wait_for(lambda: idle(served), "an idle engine")
    assert count() == before + 3


def test_a_stream_whose_time_is_up_says_so_at_its_end(served: Served) -> None:
    body = {**LONG, "stream": True, "timeout": 0.5}
    with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=60) as stream:
        assert stream.status_code == 200
        lines = [line for line in stream.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "timeout"
    assert json.loads(lines[-3].removeprefix("data: "))["choices"][0]["finish_reason"] == "timeout"


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "inf"])
def test_a_header_that_is_no_timeout_is_refused(served: Served, seconds: str) -> None:
    answer = httpx.post(
        f"{served.url}/v1/completions", json={"prompt": "a"}, headers={"X-Request-Timeout": seconds}
    )
    assert answer.status_code == 400
    assert "X-Request-Timeout must be a number above 0" in answer.json()["error"]["message"]


def test_drain(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, *FLAGS, real=True) as server:
        server.wait_ready()
        body = {"prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            assert stream.status_code == 200
            next(lines)
            server.terminate()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.wait_exit() == 0


def test_killed_core(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, *FLAGS, real=True) as server:
        server.wait_ready()
        body = {"prompt": PROMPT, "max_tokens": 4000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            assert stream.status_code == 200
            next(lines)
            os.kill(server.core_pid(), signal.SIGKILL)
            assert "killed by SIGKILL" in [line for line in lines if line][-1]
        assert server.wait_exit() == 1


def test_a_context_that_the_model_does_not_have(model: Path, tmp_path: Path) -> None:
    with serving(model, tmp_path, "--max-model-len", "100000", real=True) as server:
        assert server.wait_exit() == 2
        assert "max-model-len" in server.output()
        assert "Traceback" not in server.output()
