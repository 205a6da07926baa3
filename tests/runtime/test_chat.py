"""``sheaf chat``: on a terminal, in a pipe, and against servers as people found them in the world."""

from __future__ import annotations

import io
import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from model_folders import byte_level, write_folder
from scripted_endpoint import Endpoint, delta, scripted_endpoint, sse
from serving import Served, serving, wait_for
from sheaf_runtime.chat.command import main
from sheaf_runtime.chat.options import parser
from terminal import on_terminal

HELLO = sse(
    delta(role="assistant", content=""), delta(content="He"), delta(content="llo"), delta("stop"), "[DONE]"
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with scripted_endpoint() as made:
        yield made


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    """A server whose model says everything again, a token in 20 ms, and the core's own log."""
    folder = tmp_path_factory.mktemp("chat")
    log = folder / "core.log"
    fake = {"step_seconds": 0.02, "log": str(log)}
    with serving(write_folder(folder, byte_level()), folder, "--api-key", "secret", fake=fake) as served:
        served.wait_ready()
        yield served, log


def ask(url: str, *flags: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = main(["--base-url", url, *flags])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# Our own server


def test_a_quick_question_to_our_server(
    slow: tuple[Served, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    url = slow[0].url
    assert ask(url, "--api-key", "secret", "-q", "hi", capsys=capsys) == (0, "user:hi\n", "")
    flags = ("--api-key", "secret", "-q", "hi", "--max-tokens", "3")
    assert ask(url, *flags, capsys=capsys) == (
        0,
        "u\n",
        "sheaf chat: cut: --max-tokens or the context's end\n",
    )
    for given in ((), ("--model", "m")):
        status, out, err = ask(url, "-q", "hi", *given, capsys=capsys)
        assert (status, out) == (1, "")
        assert err.startswith("sheaf chat: HTTP 401: ")
        assert err.endswith("(give --api-key, or set SHEAF_API_KEY)\n")
    status, _, err = ask(url, "--api-key", "secret", "-q", "a" * 600, capsys=capsys)
    assert status == 1
    assert "maximum context length is 512 tokens" in err
    assert err.count("\n") == 1
    status, _, err = ask(url, "--api-key", "secret", "--model", "other", "-q", "hi", capsys=capsys)
    assert status == 1
    assert "other" in err
    assert "(served: " in err


def test_ctrl_c_stops_the_answer_at_the_server_and_not_the_chat(slow: tuple[Served, Path]) -> None:
    """simonw/llm#472, xorbits#1144: the chat ended, or the next question failed; simonw/llm#1214: Ctrl-D."""
    served, log = slow
    flags = ("--base-url", served.url, "--api-key", "secret", "--max-tokens", "300")
    with on_terminal("chat", *flags) as chat:
        chat.expect("> ")
        chat.type("b" * 100 + "\n")
        chat.expect("user:bbb")
        before = log.read_text().count("abort")
        chat.type("\x03")
        chat.expect("[stopped]")
        # It waits for the next question, and the engine has heard: the connection is closed already.
        wait_for(lambda: log.read_text().count("abort") > before, "an abort in the engine core")
        chat.expect("> ")
        chat.insist("\x03", "> ")  # at the prompt: nothing to stop
        chat.type("/reset\n")
        chat.expect("[forgotten]")
        chat.type("again\n")
        chat.expect("user:again")
        chat.expect("> ")
        chat.type("\x04")
        assert chat.wait_exit() == 0


# On a terminal


def test_a_conversation_remembers_what_was_said_and_forgets_what_failed(endpoint: Endpoint) -> None:
    """Rapid-MLX#303: a question that failed stood before the next one."""
    thinking = sse(
        delta(reasoning="hm "), delta(reasoning_content="so"), delta(content="\x1b[2JYes\x07"), delta("stop")
    )
    full = (400, b'{"error": {"message": "maximum context length is 5 tokens"}}')
    endpoint.answer(HELLO, (500, b'{"error": "oops"}'), full, sse(delta("stop")), thinking, HELLO)
    with on_terminal("chat", "--url", endpoint.url, "--system-prompt", "be kind") as chat:
        for question, shown in (
            ("one", "Hello\n"),
            ("two", "sheaf chat: HTTP 500: oops\n"),
            ("three", "HTTP 400: maximum context length is 5 tokens (/reset forgets the conversation)\n"),
            ("four", "[no text]"),
            ("five", "\x1b[2mhm so\n\x1b[0m[2JYes\n"),  # thoughts dim, the terminal not steered
            ("six", "Hello\n"),
        ):
            chat.expect("> ")
            chat.type(f"{question}\n")
            chat.expect(shown)
        chat.expect("> ")
        chat.type("\x04")
        assert chat.wait_exit() == 0
    said = [[m["content"] for m in body["messages"]] for body in endpoint.bodies]
    assert said == [
        ["be kind", "one"],
        ["be kind", "one", "Hello", "two"],
        ["be kind", "one", "Hello", "three"],
        ["be kind", "one", "Hello", "four"],
        ["be kind", "one", "Hello", "five"],
        ["be kind", "one", "Hello", "five", "\x1b[2JYes\x07", "six"],
    ]


# In a pipe, and other servers


class Input(io.TextIOWrapper):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))


def test_a_pipe_is_one_question(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """LlamaFactory#10409, vllm#20896: EOFError. Text of any encoding arrives as text."""
    endpoint.answer(HELLO)
    monkeypatch.setattr(sys, "stdin", Input("Sum up:\nä\n\n".encode() + b"\xff\n"))
    assert ask(endpoint.url, capsys=capsys) == (0, "Hello\n", "")
    assert endpoint.bodies == [
        {"model": "m", "messages": [{"role": "user", "content": "Sum up:\nä\n\n�"}], "stream": True}
    ]
    monkeypatch.setattr(sys, "stdin", Input(b" \n"))
    status, out, err = ask(endpoint.url, capsys=capsys)
    assert (status, out) == (2, "")
    assert err == "sheaf chat: there is nothing to ask; write --quick MESSAGE, or text to stdin\n"


def test_what_is_asked_for_is_sent(endpoint: Endpoint, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint.answer(HELLO)
    flags = (
        "--model",
        "x",
        "--temperature",
        "0",
        "--seed",
        "3",
        "--max-tokens",
        "9",
        "--extra-body",
        '{"top_k": 1}',
    )
    ask(endpoint.url, "-q", "hi", "--system-prompt", "s", *flags, capsys=capsys)
    assert endpoint.bodies[-1] == {
        "model": "x",
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}],
        "stream": True,
        "temperature": 0.0,
        "seed": 3,
        "max_completion_tokens": 9,
        "top_k": 1,
    }


ANSWERS: dict[str, tuple[bytes | tuple[int, bytes], int, str, str]] = {
    # vllm#25236: content null
    "nulls": (sse(delta(content=None, reasoning=None), delta(content="a"), delta("stop")), 0, "a\n", ""),
    "thoughts in a pipe": (sse(delta(reasoning="hm"), delta(content="a"), delta("stop")), 0, "a\n", ""),
    "usage without choices": (sse(delta(content="a"), delta("stop"), {"usage": {}}), 0, "a\n", ""),
    "its own line end": (sse(delta(content="a\n"), delta("stop")), 0, "a\n", ""),
    # vllm#23769: an error in the middle of the stream
    "an error in the stream": (sse(delta(content="a"), {"error": {"message": "lost"}}), 1, "a\n", "lost"),
    "cut": (sse(delta(content="a")), 1, "a\n", "ended the answer in the middle"),
    "no JSON": (b"data: {\n\n", 1, "", "not an answer of the API"),
    "a page": ((502, b"<html>Bad Gateway</html>"), 1, "", "HTTP 502: an HTML page"),
    "no such model": ((404, b'{"error": {"message": "no x"}}'), 1, "", "HTTP 404: no x (served: m)"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_other_servers(endpoint: Endpoint, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer, status, out, words = ANSWERS[name]
    endpoint.answer(answer)
    got = ask(endpoint.url, "-q", "hi", capsys=capsys)
    assert got[:2] == (status, out)
    assert words in got[2]
    assert got[2].count("\n") == (1 if words else 0)


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = ask("http://127.0.0.1:1", "-q", "hi", capsys=capsys)
    assert status == 1
    where = "http://127.0.0.1:1"
    assert err == (
        f"sheaf chat: no server answers at {where}: Connection refused; is it running, is --base-url right?\n"
    )


def test_tls(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with scripted_endpoint(context) as secure:
        secure.answer(HELLO)
        status, _, err = ask(secure.url, "-q", "hi", capsys=capsys)
        why = "unable to get local issuer certificate; SSL_CERT_FILE names further authorities"
        assert (status, err) == (1, f"sheaf chat: {secure.url} is not trusted: {why}\n")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        command = [sys.executable, "-m", "sheaf_runtime", "chat", "--url", secure.url, "-q", "hi"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")
        status, _, err = ask(secure.url.replace("https", "http"), "-q", "hi", capsys=capsys)
        assert (status, err.count("\n")) == (1, 1)
    status, _, err = ask(endpoint.url.replace("http", "https"), "-q", "hi", capsys=capsys)
    assert (status, err.count("\n")) == (1, 1)
    assert "does not speak TLS; write http://" in err


def test_it_needs_neither_torch_nor_a_server_of_ours() -> None:
    code = (
        "import json, sys, sheaf_runtime.cli, sheaf_runtime.chat.command, sheaf_runtime.bench.command\n"
        "heavy = {'torch', 'transformers', 'numpy', 'fastapi', 'zmq'}\n"
        "print(json.dumps(sorted(heavy & sys.modules.keys())))"
    )
    done: Any = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert json.loads(done.stdout) == []
    assert main(["--modle", "m"]) == 2
    assert "--quick" in parser().names()
