"""``sheaf bench serve``: against our own server, and against servers as people found them in the world."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_folders import byte_level, write_folder
from scripted_endpoint import Endpoint, delta, scripted_endpoint, sse, text, usage
from serving import Served, serving, wait_for
from sheaf_runtime.bench.command import main
from sheaf_runtime.bench.datasets import DatasetError, random_jobs, sharegpt, timed_trace
from sheaf_runtime.bench.load import Outcome, Target, arrival_times, take_line
from sheaf_runtime.bench.options import ABSENT, parse, parser
from sheaf_runtime.bench.report import percentile, remarks, summarize, tpot
from sheaf_runtime.endpoint.address import base_url
from sheaf_runtime.flags.parser import OptionError

SMALL = ("--random-input-len", "20", "--random-output-len", "6", "--random-vocab-size", "256")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("bench")
    with serving(
        write_folder(folder, byte_level()), folder, "--served-model-name", "org/tiny", fake={}
    ) as served:
        served.wait_ready()
        yield served


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with scripted_endpoint() as made:
        yield made


def bench(url: str, tmp_path: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    """Exit status and result file."""
    saved = ("--save-result", "--result-dir", str(tmp_path), "--result-filename", "r.json")
    status = main(["serve", "--base-url", url, *saved, *flags])
    return status, json.loads((tmp_path / "r.json").read_bytes())


# Our own server


@pytest.mark.parametrize("backend", ["openai", "openai-chat"])
def test_counts_are_exact_and_the_file_has_vllms_keys(
    server: Served, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--backend", backend, "--num-prompts", "7", "--max-concurrency", "3", "--ignore-eos", *SMALL)
    if backend == "openai-chat":
        flags = (*flags, "--random-input-len", "400")
    status, result = bench(server.url, tmp_path, *flags, "--goodput", "ttft:60000", "e2el:60000")
    assert status == 0
    assert (result["completed"], result["failed"], result["model_id"]) == (7, 0, "org/tiny")
    assert result["total_output_tokens"] == 7 * 6
    if backend == "openai":
        assert result["total_input_tokens"] == 7 * 20
    else:  # words of a text, after measuring
        assert result["total_input_tokens"] == pytest.approx(7 * 400, rel=0.1)
    assert result["output_throughput"] == pytest.approx(42 / result["duration"])
    assert result["request_goodput"] == pytest.approx(7 / result["duration"])
    for metric in ("ttft", "tpot", "itl", "e2el"):
        for kind in ("mean", "median", "std", "p99"):
            assert result[f"{kind}_{metric}_ms"] >= 0
    assert result["median_ttft_ms"] <= result["median_e2el_ms"]
    out = capsys.readouterr().out
    assert "Successful requests" in out
    assert "Time per output token (without the first) (ms)" in out


def test_equal_seeds_send_equal_prompts_at_equal_times() -> None:
    assert random_jobs(3, 9, 2, 4096, 5) == random_jobs(3, 9, 2, 4096, 5)
    assert random_jobs(3, 9, 2, 4096, 5) != random_jobs(3, 9, 2, 4096, 6)
    assert arrival_times(50, 4.0, 1.0, 3) == arrival_times(50, 4.0, 1.0, 3)
    assert arrival_times(3, math.inf) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("burstiness", [0.3, 1.0, 20.0])
def test_arrivals_have_their_rate_and_burstiness(burstiness: float) -> None:
    times = arrival_times(20_000, 5.0, burstiness, seed=1)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(0.2, rel=0.05)
    assert mean**2 / variance == pytest.approx(burstiness, rel=0.1)  # the shape of a gamma distribution


def test_ctrl_c_reports_what_is_there(server: Served, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sheaf_runtime", "bench", "serve", "--base-url", server.url, *SMALL]
    process = subprocess.Popen(
        [
            *command,
            "--request-rate",
            "5",
            "--num-prompts",
            "1000",
            "--save-result",
            "--result-dir",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    before = server.output().count("/v1/completions")
    wait_for(lambda: server.output().count("/v1/completions") > before + 3, "answers")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Successful requests" in out
    assert err.endswith("interrupted: these are the requests that had ended\n")
    (path,) = tmp_path.glob("openai-5qps-tiny-*.json")
    assert json.loads(path.read_bytes())["interrupted"] is True


# Other servers: each a public bug report of a load generator


def test_a_refusal_is_told_in_the_servers_words_before_the_load(
    endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """vllm#26834, vllm#19743: "400 Bad Request", "Gateway Time-out" and nothing else."""
    for status, body, words in (
        (
            400,
            b'{"error": {"message": "max_tokens must be\\nbelow 5", "code": 400}}',
            "HTTP 400: max_tokens must be below 5",
        ),
        (504, b"<html><head><title>504</title></head></html>", "HTTP 504: an HTML page"),
        (422, b'{"detail": [{"loc": ["body"], "msg": "Field required"}]}', "Field required"),
        (
            404,
            b'{"object": "error", "message": "The model `x` does not exist."}',
            "The model `x` does not exist.",
        ),
        (401, b'{"error": "Unauthorized"}', "HTTP 401: Unauthorized (give --api-key, or set SHEAF_API_KEY)"),
        (500, b"", "HTTP 500: no message"),
    ):
        endpoint.answer((status, body))
        assert main(["serve", "--base-url", endpoint.url, "--num-prompts", "5"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("sheaf bench serve: a first request failed: ")
        assert words in error
        assert error.count("\n") == 1
        assert len(endpoint.bodies) == 1


def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--base-url", "http://127.0.0.1:1"]) == 1
    assert "no server answers at http://127.0.0.1:1: " in capsys.readouterr().err


def test_what_lists_no_models_is_no_endpoint(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    was = endpoint.models
    try:
        for answer, words in (
            ((200, b"<html>"), "lists no models"),
            ((200, b'{"data": []}'), "serves no model"),
            ((404, b"Not Found"), "HTTP 404: Not Found"),
        ):
            endpoint.models = answer
            assert main(["serve", "--base-url", endpoint.url]) == 1
            assert words in capsys.readouterr().err
    finally:
        endpoint.models = was


# fmt: off
STREAMS = {
    # sglang#24254, sglang#10746: usage comes with an empty text; an early end is not the length asked for
    "usage beside the last text": sse(
        text("a"),
        text("", finish_reason="stop") | {"usage": {"prompt_tokens": 9, "completion_tokens": 2}},
        "[DONE]",
    ),
    # guidellm#315: a last delta without content; nulls everywhere
    "no content": sse(
        delta(role="assistant", content=None), delta(content="a"), delta("stop"), usage(9, 2), "[DONE]"
    ),
    # vllm#42548: a model that only thinks
    "only thoughts": sse(
        delta(reasoning_content="hm"), delta(reasoning="m"), delta("length"), usage(9, 2), "[DONE]"
    ),
    "a tool call": sse(delta(tool_calls=[{"index": 0}]), delta("tool_calls"), usage(9, 2), "[DONE]"),
    # pings of proxies, events with names, CRLF
    "comments": b": ping\n\nevent: x\nid: 3\n"
    + sse(text("a"), text("b", finish_reason="stop")).replace(b"\n", b"\r\n")
    + b": ping\n\n" + sse(usage(9, 2)) + b"data:[DONE]\n\n",
    # TensorRT-LLM#13952, inference-perf#283: "Chunk too big"
    "an event of 1 MB": sse(text("x" * 2**20), text("b", finish_reason="stop"), usage(9, 2), "[DONE]"),
    "usage in every event": sse(
        text("a") | {"usage": {"prompt_tokens": 9, "completion_tokens": 1}},
        text("b", finish_reason="stop") | {"usage": {"prompt_tokens": 9, "completion_tokens": 2}},
        "[DONE]",
    ),
    "nothing visible": sse(text(""), text("", finish_reason="length"), usage(9, 2), "[DONE]"),
    "no blank line at the end": sse(text("a", finish_reason="stop"), usage(9, 2)) + b"data: [DONE]",
}
# fmt: on


@pytest.mark.parametrize("name", STREAMS)
def test_streams_of_other_servers_are_counted_right(endpoint: Endpoint, name: str, tmp_path: Path) -> None:
    endpoint.answer(STREAMS[name])
    status, result = bench(endpoint.url, tmp_path, "--num-prompts", "2", "--num-warmups", "0")
    assert (status, result["completed"], result["errors"]) == (0, 2, {})
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (18, 4)
    assert result["mean_ttft_ms"] > 0


BROKEN = {
    # guidellm#743: 200, and the error in the stream
    "an error in the stream": (
        sse({"error": {"message": "TimeoutError", "code": 504}}, "[DONE]"),
        "TimeoutError",
    ),
    "cut short": (sse(text("a")), "without a finish reason"),
    "done without a reason": (sse(text("a"), "[DONE]"), "without a finish reason"),
    "an empty answer": (b"", "without a finish reason"),
    "not JSON": (b"data: {oops\n\n", "not an answer of the API"),
    "not a stream": (b'{"choices": [{"text": "a", "finish_reason": "stop"}]}', "without a finish reason"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_answers_are_failures_with_a_name(
    endpoint: Endpoint, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stream, words = BROKEN[name]
    endpoint.answer(stream)
    status, result = bench(endpoint.url, tmp_path, "--num-prompts", "3", "--num-warmups", "0")
    assert (status, result["completed"], result["failed"]) == (1, 0, 3)
    ((error, count),) = result["errors"].items()
    assert words in error
    assert count == 3
    assert (result["mean_ttft_ms"], result["output_throughput"]) == (None, 0.0)
    assert f"note: 3 failed: {error}" in capsys.readouterr().out


def test_only_openais_fields_are_sent_unless_asked_for(endpoint: Endpoint, tmp_path: Path) -> None:
    """guidellm#603: strict proxies answer 4xx to what they do not know."""
    endpoint.answer(STREAMS["comments"])
    bench(endpoint.url, tmp_path, "--num-prompts", "1")
    known = {"model", "prompt", "max_tokens", "temperature", "stream", "stream_options"}
    assert set(endpoint.bodies[-1]) == known
    assert endpoint.bodies[-1]["stream_options"] == {"include_usage": True}
    bench(endpoint.url, tmp_path, "--num-prompts", "1", "--ignore-eos", "--extra-body", '{"top_k": 3}')
    assert set(endpoint.bodies[-1]) == known | {"ignore_eos", "top_k"}


def test_keys_headers_and_addresses(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vllm#11384 (a key), letta#2580 and litellm#5183 (/v1 or not), vllm#12356 (proxies, which cannot reach
    this machine)."""
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:3128")
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    endpoint.answer(STREAMS["comments"])
    bench(f"{endpoint.url}/v1/", tmp_path, "--num-prompts", "1", "--header", "X-Team=a=b")
    assert endpoint.paths == ["/v1/completions"] * 2
    assert endpoint.headers[-1]["authorization"] == "Bearer theirs"
    assert endpoint.headers[-1]["x-team"] == "a=b"
    monkeypatch.setenv("SHEAF_API_KEY", "ours")
    bench(endpoint.url, tmp_path, "--num-prompts", "1")
    assert endpoint.headers[-1]["authorization"] == "Bearer ours"
    bench(endpoint.url, tmp_path, "--num-prompts", "1", "--api-key", "mine")
    assert endpoint.headers[-1]["authorization"] == "Bearer mine"
    assert "mine" not in (tmp_path / "r.json").read_text()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("http://h/v1", "http://h"),
        ("http://h/v1/chat/completions", "http://h"),
        ("https://h/openai/v1/", "https://h/openai"),
        ("http://[::1]:8000//", "http://[::1]:8000"),
    ],
)
def test_addresses(given: str, wanted: str) -> None:
    assert base_url(given) == wanted


# Numbers


def outcome(events: list[float], tokens: int, *, end: float = 9.0, usage: bool = True) -> Outcome:
    return Outcome(
        0.0, 0.0, end, events, prompt_tokens=5, output_tokens=tokens, has_usage=usage, finish_reason="stop",
        complete=True,
    )  # fmt: skip


def test_metrics_by_hand() -> None:
    """vllm#27485: events that bring several tokens are no tokens. TPOT is per token, ITL is per event."""
    good = outcome([1.0, 2.0, 4.0], 7)
    assert (good.ttft, good.e2el, tpot(good)) == (1.0, 4.0, 0.5)
    assert tpot(outcome([1.0], 1)) is None  # sglang#26497: no division by nothing
    summary = summarize(
        [good, outcome([3.0], 1)], percentiles=(50, 99.9), goodput={"ttft": 2000, "tpot": 600}
    )
    assert (summary["mean_ttft_ms"], summary["median_ttft_ms"], summary["p50_ttft_ms"]) == (2000, 2000, 2000)
    assert (summary["mean_tpot_ms"], summary["mean_itl_ms"], summary["mean_e2el_ms"]) == (500, 1500, 3500)
    assert summary["p99.9_e2el_ms"] == pytest.approx(3999)
    assert summary["request_goodput"] == pytest.approx(1 / 9)
    assert (summary["output_throughput"], summary["total_token_throughput"]) == (8 / 9, 18 / 9)
    assert remarks(summary) == [
        "note: the server sends 2.00 tokens in an event: ITL is between events, TPOT is per token"
    ]
    assert "without usage" in remarks(summarize([outcome([1.0], 1, usage=False)]))[0]
    nothing = summarize([])
    assert (nothing["completed"], nothing["mean_ttft_ms"]) == (0, None)


def test_percentiles() -> None:
    assert [percentile([4, 1, 3, 2], p) for p in (0, 50, 100)] == [1, 2.5, 4]


def test_a_body_of_a_chat() -> None:
    out = Outcome(0.0)
    for line in STREAMS["only thoughts"].splitlines():
        take_line(out, line)
    assert (out.complete, out.finish_reason, len(out.chunk_times)) == (True, "length", 2)
    assert Target("u", "m", chat=True).route == "u/v1/chat/completions"


# Files


def test_files_of_prompts(endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress('{"prompt": "ä"}\n\n{"prompt": "b", "output_tokens": 3}\n'.encode()))
    endpoint.answer(STREAMS["comments"])
    flags = ("--dataset-name", "custom", "--dataset-path", str(path), "--num-warmups", "0")
    # vllm#13063: more requests than the file has
    status, _ = bench(endpoint.url, tmp_path, *flags, "--num-prompts", "4", "--max-concurrency", "1")
    assert status == 0
    sent = [(body["prompt"], body["max_tokens"]) for body in endpoint.bodies]
    assert sorted(sent) == [("b", 3)] * 2 + [("ä", 256)] * 2
    for content, words in (
        (b'{"text": "a"}', 'r.jsonl:1: a row is {"prompt"'),
        (b"[1]", ":1: not a JSON object"),
        (b'{"prompt": "a"}\n{', "r.jsonl:2: "),
        (b"\n", "holds no request"),
        (b'{"prompt": "\xff"}', "r.jsonl:1: "),
    ):
        (tmp_path / "r.jsonl").write_bytes(content)
        assert (
            main(
                ["serve", "--base-url", endpoint.url, *flags[:2], "--dataset-path", str(tmp_path / "r.jsonl")]
            )
            == 2
        )
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert main(["serve", *flags[:2], "--dataset-path", str(tmp_path)]) == 2
    assert "cannot be read: Is a directory" in capsys.readouterr().err


def test_conversations_and_traces(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    turns = [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "b" * 80}]
    path.write_text(
        json.dumps([{"conversations": turns}, {"conversations": turns[:1]}, {"conversations": None}])
    )
    assert [(j.prompt, j.max_tokens) for j in sharegpt(path, None)] == [("why?", 20)]
    assert [j.max_tokens for j in sharegpt(path, 5)] == [5]
    trace = [
        {"timestamp": 2500, "input_length": 20, "output_length": 3, "hash_ids": [1, 2, 9]},
        {"timestamp": 500, "input_length": 18, "output_length": 0, "hash_ids": [1, 2, 4]},
    ]
    path.write_text("\n".join(map(json.dumps, trace)))
    jobs, arrivals = timed_trace(path, 4096, 8, 0.001, 0)
    assert arrivals == [0.0, 2.0]
    assert [(len(j.prompt), j.max_tokens) for j in jobs] == [(18, 1), (20, 3)]
    assert jobs[0].prompt[:16] == jobs[1].prompt[:16]
    assert jobs[0].prompt[16:] != jobs[1].prompt[16:18]
    path.write_text('{"timestamp": 1}')
    with pytest.raises(DatasetError, match=r"s\.json:1: a row has"):
        timed_trace(path, 4096, 8, 1.0, 0)


# Flags


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--base-url", "ftp://h"], "write http://HOST:PORT"),
        (["--base-url", "http://"], "write http://HOST:PORT"),
        (["--request-rate", "0"], "above 0, or inf"),
        (["--request-rate", "nan"], "above 0, or inf"),
        (["--burstiness", "0"], "above 0"),
        (["--goodput", "itl:5"], "write ttft, tpot or e2el"),
        (["--percentile-metrics", "ttft,x"], "must be some of ttft,tpot,itl,e2el"),
        (["--metric-percentiles", "101"], "from 0 to 100"),
        (["--dataset-name", "sharegpt"], "needs --dataset-path"),
        (["--dataset-path", "f"], "needs --dataset-name"),
        (["--header", "X: y"], "write NAME=VALUE"),
        (["--dataset-name", "timed_trace", "--dataset-path", "f", "--request-rate", "2"], "its own arrivals"),
        (["--tokenizer", "t"], "not supported: tokens are counted by the server's usage"),
        (["--num-prompt", "3"], "did you mean --num-prompts?"),
        (["--random-range-ratio", "1"], "from 0 to below 1"),
    ],
)
def test_refusals(flags: list[str], words: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse(flags)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_no_flag_is_both_known_and_refused() -> None:
    assert set(parser().names()) & set(ABSENT) == set()
    assert main([]) == 2
    assert main(["throughput"]) == 2
