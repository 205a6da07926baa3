"""What no client of good will sends: everybody else's answers stay as they were.

Bodies come from schemathesis, which reads our /openapi.json, and from a list of hostile ones. The engine is
the real one with a tiny random model.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from serving import Served, serving, wait_for
from sheaf_runtime.protocol.limits import BOUNDS

FLAGS = ("--served-model-name", "tiny", "--num-gpu-blocks-override", "300", "--max-model-len", "128")
GREEDY = {"prompt": "the pages of a sheaf", "max_tokens": 16, "temperature": 0, "ignore_eos": True}
DEEP = json.loads("[" * 200 + "]" * 200)
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def served(tiny_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tiny_llama(), tmp_path_factory.mktemp("out"), *FLAGS, real=True) as server:
        server.wait_ready()
        yield server
        assert "Traceback" not in server.output()


@pytest.fixture(scope="module")
def before(served: Served) -> str:
    return greedy(served)


@pytest.fixture(autouse=True)
def unharmed(served: Served, before: str) -> Iterator[None]:
    """After each test: the same greedy answer, nothing left in the engine."""
    yield
    wait_for(lambda: served.metric("vllm:num_requests_running") == 0, "requests to end")
    assert greedy(served) == before
    wait_for(lambda: served.metric("sheaf:blocks_live") == 0, "blocks to be given back")
    assert served.status("/health") == 200


def greedy(served: Served) -> str:
    answer = httpx.post(f"{served.url}/v1/completions", json=GREEDY, timeout=60)
    assert answer.status_code == 200
    text: str = answer.json()["choices"][0]["text"]
    return text


def post(served: Served, path: str, body: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    return httpx.post(served.url + path, content=content, headers=headers, timeout=60)


# Each endpoint's own schema says what may be sent; what is in it may still be refused, but never with a 5xx.
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"])
def test_bodies_made_from_the_schema(served: Served, path: str) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    operation = schema[path]["POST"]
    statuses = set()

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def run(case: Any) -> None:
        response = case.call(base_url=served.url, timeout=60)
        statuses.add(response.status_code)
        assert response.status_code < 500, response.text

    run()
    assert statuses <= {200, 400, 404, 413, 415, 422, 429}


NUMBERS = ["1" + "0" * 30, "-1" + "0" * 30, "9223372036854775808", "18446744073709551616", "2147483648"]
NUMBERS += ["1e400", "-1e308", "NaN", "Infinity", "1e-400", "0.5", "true", '"7"', "[]", "{}", "-0"]


@pytest.mark.parametrize("name", sorted(set(BOUNDS) - {"token id", "logit_bias"}))
def test_any_number_in_any_field(served: Served, name: str) -> None:
    for number in NUMBERS:
        for path, start in (
            ("/v1/completions", '{"prompt": "a"'),
            ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "a"}]'),
        ):
            bound = ', "max_tokens": 2' if "max" not in name else ""
            response = post(served, path, f'{start}{bound}, "{name}": {number}}}'.encode())
            assert response.status_code in (200, 400), (number, response.text)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        (
            "/v1/chat/completions",
            {"messages": HI, "chat_template_kwargs": {"a": json.loads("[" * 200 + "]" * 200)}},
        ),
        ("/v1/completions", b'{"prompt": "\xff\xfe"}'),
        ("/v1/completions", b'{"prompt": "\\ud800"}'),
        ("/v1/completions", {"prompt": "x" * 10_000_000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "y" * 10_000_000}]}),
        ("/v1/completions", {"prompt": [5] * 1_000_000}),
        ("/v1/completions", {"prompt": [2**31 - 1]}),
        ("/v1/completions", {"prompt": [2**63]}),
        ("/v1/completions", {"prompt": "a", "logit_bias": {str(i): 1 for i in range(100_000)}}),
        ("/v1/completions", {"prompt": "a", "bad_words": ["b" * 1_000_000]}),
        ("/v1/completions", {"prompt": "a", "stop": ["c" * 1_000_000] * 64, "max_tokens": 2}),
        ("/v1/completions", {"prompt": "a", "stop_token_ids": [5] * 100_000}),
        ("/v1/completions", {"prompt": ["a"] * 1024, "n": 128}),
        ("/v1/completions", {"prompt": "a", "cache_salt": "\u0000", "max_tokens": 2}),
        ("/v1/completions", {"prompt": "\u0000" * 50, "max_tokens": 2}),
        ("/v1/completions", {"prompt": "a", "model": "x" * 100_000}),
        ("/v1/completions", {"prompt": "a", "x" * 100_000: 1}),
        ("/v1/completions", b"\x00" * 1000),
        ("/v1/completions", b"[" * 1_000_000),
        ("/v1/completions", b""),
        ("/v1/completions", b"null"),
        ("/tokenize", {"prompt": "z" * 10_000_000}),
        ("/detokenize", {"tokens": [2**31 - 1] * 100_000}),
        ("/detokenize", {"tokens": [10**30]}),
    ],
    ids=range(25),
)
def test_hostile_bodies(served: Served, path: str, body: Any) -> None:
    began = threading.Event()
    neighbour: list[httpx.Response] = []

    def stream() -> None:
        began.set()
        neighbour.append(httpx.post(f"{served.url}/v1/completions", json=GREEDY, timeout=60))

    thread = threading.Thread(target=stream)
    thread.start()
    began.wait()
    response = post(served, path, body)
    assert response.status_code in (200, 400, 404, 413), response.text[:300]
    if response.status_code >= 400:
        assert len(response.content) < 2000, "an error that repeats what was sent"
    thread.join()
    assert neighbour[0].status_code == 200


WIDE = {
    "lists": b'{"prompt": [' + b"[]," * 500_000 + b"[]]}",
    "numbers": b'{"prompt": [' + b"5," * 1_000_000 + b"5]}",
    "keys": b'{"prompt": "a", "logit_bias": {' + b",".join(b'"%d":1' % i for i in range(100_000)) + b"}}",
    "messages": json.dumps({"messages": HI * 100_000}).encode(),
}


@pytest.mark.parametrize("name", WIDE)
def test_more_values_than_can_be_read_in_passing(served: Served, name: str) -> None:
    response = post(served, "/v1/completions", WIDE[name])
    assert response.status_code == 400
    assert "the JSON of the body has more than" in response.json()["error"]["message"]


def test_unknown_fields_without_end_are_not_looked_at_one_by_one(served: Served) -> None:
    body = {"prompt": "a", **{f"k{i}": 1 for i in range(20_000)}}
    response = post(served, "/v1/completions", body)
    assert response.status_code == 400
    assert "at most 256 fields" in response.json()["error"]["message"]


def test_megabytes_are_not_tokenized_to_be_cut(served: Served) -> None:
    body = {"prompt": "word " * 1_000_000, "truncate_prompt_tokens": 8, "max_tokens": 2}
    response = post(served, "/v1/completions", body)
    assert response.status_code == 400
    assert "too many to be cut" in response.json()["error"]["message"]


# What ended, froze or confused other servers.
REPORTED: dict[str, tuple[str, Any, int]] = {
    "vllm#4529, a seed beyond 64 bits": ("/v1/completions", {"prompt": "a", "seed": 2**64}, 400),
    "vllm-omni#6598, ids beyond 64 bits": (
        "/v1/completions",
        {"prompt": "a", "stop_token_ids": [2**70]},
        400,
    ),
    "vllm#24910, a chat much longer than the context": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "word " * 1_000_000}]},
        400,
    ),
    "vllm#17894, a large bound in a schema": (
        "/v1/completions",
        {
            "prompt": "a",
            "max_tokens": 2,
            "structured_outputs": {"json": {"type": "integer", "maximum": 2 * 10**10}},
        },
        200,
    ),
    "llama.cpp#4492, a grammar that is none": (
        "/v1/completions",
        {"prompt": "a", "structured_outputs": {"grammar": "root ::= ("}},
        400,
    ),
    "llama.cpp#6396, GBK": ("/v1/completions", '{"prompt": "你好"}'.encode("gbk"), 400),
    "llama.cpp#9210, an error about bytes that are no UTF-8": ("/v1/completions", b'{"\xff\xfe": 1}', 400),
    "text-generation-inference#1795, a cut within a character": (
        "/v1/completions",
        {"prompt": "a", "model": "你" * 1001},
        404,
    ),
    "starlette#548, NaN": ("/v1/completions", b'{"prompt": "a", "temperature": NaN}', 400),
    "Rapid-MLX#730, half of a surrogate pair": (
        "/v1/chat/completions",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        400,
    ),
    "tiktoken#195, a word without end": (
        "/v1/completions",
        {"prompt": "a" * 200_000, "truncate_prompt_tokens": 8, "max_tokens": 2},
        200,
    ),
    "cpython#95778, a number of many digits": (
        "/v1/completions",
        b'{"prompt": "a", "seed": ' + b"9" * 500_000 + b"}",
        400,
    ),
}


@pytest.mark.parametrize("report", REPORTED)
def test_what_harmed_others(served: Served, report: str) -> None:
    path, body, status = REPORTED[report]
    response = post(served, path, body)
    assert response.status_code == status, response.text[:300]
    if status >= 400:
        assert response.json()["error"]["message"]
        assert len(response.content) < 4000


def test_a_form_is_not_read_as_one(served: Served) -> None:
    """GHSA-f96h-pmfr-66vw: parts of any size were kept."""
    files = {"prompt": ("prompt", b"x" * 1_000_000)}
    response = httpx.post(f"{served.url}/v1/completions", files=files, timeout=60)
    assert response.status_code == 400


def test_a_body_in_very_many_pieces(served: Served) -> None:
    """uvicorn#443: joined again with every piece that came."""
    body = json.dumps({**GREEDY, "user": "x" * 200_000}).encode()
    pieces = (body[at : at + 10] for at in range(0, len(body), 10))
    response = httpx.post(
        f"{served.url}/v1/completions",
        content=pieces,
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    assert response.status_code == 200


def test_slow_and_half_closed_clients(served: Served) -> None:
    body = json.dumps(GREEDY).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    open_ = []
    for part in (b"", head[:20], head + b"%d\r\n\r\n" % len(body) + body[:10]):
        sock = socket.create_connection(("127.0.0.1", served.port))
        sock.sendall(part)
        open_.append(sock)  # says no more
    for cut in (len(head) + 5, 10):
        with socket.create_connection(("127.0.0.1", served.port)) as sock:
            sock.sendall((head + b"%d\r\n\r\n" % len(body) + body)[:cut])
            sock.shutdown(socket.SHUT_WR)
    assert greedy(served)
    for sock in open_:
        sock.close()
