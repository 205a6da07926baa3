"""Keys, request ids, CORS, limits and the access log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from model_folders import byte_level, write_folder
from serving import Served, serving, wait_for
from sheaf_runtime.server.keys import ApiKeys, KeyFileError
from sheaf_runtime.server.launch import main

BODY = {"prompt": "a secret prompt", "max_tokens": 4, "ignore_eos": True}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("third\nfourth\n")
    return path


@pytest.fixture(scope="module")
def served(keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = write_folder(tmp_path_factory.mktemp("model"), byte_level())
    flags = ("--api-key", "first", "second", "--api-key-file", str(keys), "--max-body-size", "2000")
    flags += ("--allowed-origins", "https://page.example")
    with serving(folder, tmp_path_factory.mktemp("out"), *flags) as server:
        server.wait_ready()
        yield server


def ask(served: Served, key: str = "first", **headers: str) -> httpx.Response:
    headers |= {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{served.url}/v1/completions", json=BODY, headers=headers)


def test_several_keys_and_those_of_a_file(served: Served, keys: Path) -> None:
    assert [ask(served, key).status_code for key in ("first", "second", "third", "fourth")] == [200] * 4
    assert ask(served, "fifth").status_code == 401
    keys.write_text("fifth\n")
    assert (ask(served, "fifth").status_code, ask(served, "third").status_code) == (200, 401)
    keys.write_text("")
    assert ask(served, "fifth").status_code == 200  # a renewal that is not done yet
    for path in ("/health", "/metrics"):
        assert served.status(path) == 200
    assert httpx.post(f"{served.url}/reset_prefix_cache").status_code == 401


@pytest.mark.parametrize(
    ("sent", "status"),
    [("bearer first", 200), ("BEARER   first", 200), ("Basic first", 401), ("first", 401)],
)
def test_the_scheme_is_written_in_any_case(served: Served, sent: str, status: int) -> None:
    answer = httpx.post(f"{served.url}/v1/completions", json=BODY, headers={"Authorization": sent})
    assert answer.status_code == status


def test_an_empty_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What --api-key "$KEY" is where there is no KEY."""
    folder = write_folder(tmp_path / "model", byte_level())
    assert main([str(folder), "--api-key", ""]) == 2
    assert "--api-key is empty" in capsys.readouterr().err


def test_a_slash_at_the_end_is_no_redirect(served: Served) -> None:
    headers = {"Authorization": "Bearer first"}
    for path in ("/v1/completions/", "/v1/completions//"):
        assert httpx.post(f"{served.url}{path}", json=BODY, headers=headers).status_code == 200
        assert httpx.post(f"{served.url}{path}", json=BODY).status_code == 401
    models = httpx.get(f"{served.url}/v1/models/", headers=headers)
    assert models.json()["object"] == "list"
    assert served.status("/health/") == 200
    assert served.status("/nowhere/") == 404


def test_a_file_without_keys_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_text("\n")
    with pytest.raises(KeyFileError, match="one key a line"):
        ApiKeys((), str(tmp_path / "keys"))
    folder = write_folder(tmp_path / "model", byte_level())
    assert main([str(folder), "--api-key-file", str(tmp_path / "nowhere")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_request_ids_are_echoed(served: Served) -> None:
    assert ask(served, **{"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = {ask(served).headers["x-request-id"], ask(served, "wrong").headers["x-request-id"]}
    assert len(made) == 2
    assert ask(served, **{"X-Request-Id": "x" * 200}).headers["x-request-id"] != "x" * 200


def test_the_access_log_has_tokens_and_times_and_no_text(served: Served) -> None:
    assert ask(served, **{"X-Request-Id": "logged-1"}).status_code == 200
    wait_for(lambda: "logged-1" in served.output(), "the log")
    (line,) = [line for line in served.output().splitlines() if "logged-1" in line]
    for words in ("POST /v1/completions 200", "prompt_tokens=16", "completion_tokens=4", "first_token_ms="):
        assert words in line
    assert "secret" not in served.output()
    assert "first\n" not in served.output()
    assert "GET /health" not in served.output()


def test_cors(served: Served) -> None:
    ask_first = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for origin, status in (("https://page.example", 200), ("https://other.example", 400)):
        headers = {"Origin": origin} | ask_first
        preflight = httpx.options(f"{served.url}/v1/completions", headers=headers)
        assert preflight.status_code == status
        allowed = ask(served, Origin=origin).headers.get("access-control-allow-origin")
        assert allowed == (origin if status == 200 else None)


def test_a_body_beyond_the_limit(served: Served) -> None:
    headers = {"Authorization": "Bearer first"}
    body = {"prompt": "a" * 3000}
    answer = httpx.post(f"{served.url}/v1/completions", json=body, headers=headers)
    assert answer.status_code == 413
    assert "2000 bytes (--max-body-size)" in answer.json()["error"]["message"]
