"""Models by name: what is one, which files are read, and the download through the real huggingface_hub from a
small hub over real HTTP."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from local_hub import LocalHub, local_hub
from model_folders import byte_level, write_folder
from serving import wait_for
from sheaf_runtime.hub import progress
from sheaf_runtime.hub.errors import HubError
from sheaf_runtime.hub.files import chosen_gguf, needed_files
from sheaf_runtime.hub.name import HubName, hub_name
from sheaf_runtime.hub.weights import INDEX, MissingShardsError

# Each line of stdin is an order; each line of stdout its answer.
ASK = """
import os, sys, msgspec
from sheaf_runtime.hub.download import download
from sheaf_runtime.hub.errors import HubError
from sheaf_runtime.hub.name import Order
for line in sys.stdin:
    try:
        print(download(msgspec.json.decode(line, type=Order)), flush=True)
    except HubError as error:
        print(f"refused: {error}", flush=True)
os._exit('torch' in sys.modules)
"""


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen3-0.6B", HubName("Qwen/Qwen3-0.6B")),
        ("unsloth/Qwen3-0.6B-GGUF:Q4_K_M", HubName("unsloth/Qwen3-0.6B-GGUF", "Q4_K_M")),
        ("org/model:sub/file.gguf", HubName("org/model", "sub/file.gguf")),
        ("01-ai/Yi_1.5", HubName("01-ai/Yi_1.5")),
        ("/models/missing", None),
        ("./org/model", None),
        ("org/model/", None),
        ("models/org/model", None),
        ("gpt2", None),
        ("org/..", None),
        ("org/a--b", None),
        ("~/model", None),
        ("org/model name", None),
        ("org/-model", None),
    ],
)
def test_what_is_a_name_on_the_hub(model: str, name: HubName | None) -> None:
    assert hub_name(model) == name


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("hf://org/model", "write the model's name alone, as org/model"),
        ("https://hub.example/org/model/tree/main", "as org/model"),
        ("org/model@v1", "write org/model --revision v1"),
    ],
)
def test_what_is_nearly_a_name_says_how_it_is_written(model: str, words: str) -> None:
    with pytest.raises(HubError, match=words):
        hub_name(model)


def test_a_folder_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert hub_name("org/model") is None
    assert hub_name("org/other") == HubName("org/other")


BASE = ("config.json", "tokenizer.json")
SHARDS = json.dumps({"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}})
TWO = ("model-1-of-2.safetensors", "model-2-of-2.safetensors")


@pytest.mark.parametrize(
    ("listing", "index", "needed"),
    [
        # Llama and gpt-oss: the same weights again for other programs.
        (
            (
                *BASE,
                "model.safetensors",
                "pytorch_model.bin",
                "original/model.safetensors",
                "metal/model.bin",
            ),
            None,
            (*BASE, "model.safetensors"),
        ),
        # Mistral 7B v0.3: shards, and all of it once more.
        ((*BASE, INDEX, *TWO, "consolidated.safetensors"), SHARDS, (*BASE, INDEX, *TWO)),
        # Left over from another upload; the index is what counts, for the loader too.
        ((*BASE, INDEX, *TWO, "model.safetensors"), SHARDS, (*BASE, INDEX, *TWO)),
        # Without an index.
        ((*BASE, *TWO, "consolidated.safetensors"), None, (*BASE, *TWO)),
        # Everything small that is read, and nothing else.
        (
            (
                *BASE,
                "1_Pooling/config.json",
                "README.md",
                "chat_template.jinja",
                "generation_config.json",
                "model.safetensors",
                "modeling_x.py",
                "modules.json",
                "onnx/config.json",
                "onnx/model.onnx",
                "pytorch_model.bin.index.json",
                "tokenizer_config.json",
            ),
            None,
            (
                "1_Pooling/config.json",
                "chat_template.jinja",
                *BASE[:1],
                "generation_config.json",
                "modules.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "model.safetensors",
            ),
        ),
    ],
)
def test_each_weight_is_downloaded_once(listing: Any, index: str | None, needed: Any) -> None:
    assert sorted(needed_files("org/model", listing, index)) == sorted(needed)


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        (("config.json", "pytorch_model.bin"), r"org/model has pickled weights only \(pytorch_model.bin\)"),
        ((*BASE, "flax_model.msgpack"), r"has no \*.safetensors files"),
        (("config.json", "model.safetensors", "vocab.txt"), "no tokenizer.json.*save_pretrained"),
        (("adapter_config.json", "adapter_model.safetensors"), "is an adapter"),
        (("model_index.json", "unet/config.json"), "pipeline of diffusers"),
        (("params.json", "consolidated.safetensors"), "Mistral's own format only"),
        (("README.md",), "no config.json"),
    ],
)
def test_what_cannot_be_served_is_refused_before_its_weights_are_fetched(listing: Any, words: str) -> None:
    with pytest.raises(HubError, match=words):
        needed_files("org/model", listing, None)


def test_an_index_that_names_more_than_there_is() -> None:
    with pytest.raises(MissingShardsError, match="lacks 1 of 2") as caught:
        needed_files("org/model", (*BASE, INDEX, TWO[0]), SHARDS)
    assert caught.value.missing == [TWO[1]]


QUANTS = ("m-Q4_K.gguf", "m-Q4_K_M.gguf", "m.Q8_0.gguf", "m-UD-Q4_K_XL.gguf", "mmproj-m-F16.gguf")


@pytest.mark.parametrize(
    ("listing", "wanted", "file"),
    [
        (QUANTS, "Q4_K_M", "m-Q4_K_M.gguf"),
        (QUANTS, "q4_k", "m-Q4_K.gguf"),
        (QUANTS, "Q8_0", "m.Q8_0.gguf"),
        (QUANTS, "m-UD-Q4_K_XL.gguf", "m-UD-Q4_K_XL.gguf"),
        (("config.json", "m-F16.gguf", "mmproj-F16.gguf"), None, "m-F16.gguf"),
        (("BF16/m-BF16.gguf", "m-Q4_0.gguf"), "BF16", "BF16/m-BF16.gguf"),
        (("model.safetensors", *QUANTS), None, None),
        (("model.safetensors", *QUANTS), "Q8_0", "m.Q8_0.gguf"),
        (BASE, None, None),
    ],
)
def test_the_gguf_file_that_is_meant(listing: Any, wanted: str | None, file: str | None) -> None:
    assert chosen_gguf("org/model", listing, wanted) == file


@pytest.mark.parametrize(
    ("listing", "wanted", "words"),
    [
        (QUANTS, None, "has 4 GGUF files: .*name one of them, as org/model:Q4_K$"),
        (QUANTS, "Q2_K", "has no Q2_K, but 4 GGUF files"),
        (BASE, "Q4_0", "has no GGUF files; write the name without :Q4_0"),
        (("m-Q8_0-00001-of-00002.gguf",), None, "part of a model"),
    ],
)
def test_a_gguf_file_that_is_not_clear(listing: Any, wanted: str | None, words: str) -> None:
    with pytest.raises(HubError, match=words):
        chosen_gguf("org/model", listing, wanted)


def test_off_a_terminal_a_download_is_a_line_now_and_then(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    caplog.set_level("INFO")
    with (
        progress.Lines(name=progress.BYTES, total=4 * 10**9, unit="B") as counted,
        progress.Lines(total=7, desc="Fetching 7 files") as other,
    ):
        caplog.clear()
        counted.n = 10**9
        counted.refresh()
        other.update(1)
    monkeypatch.setattr(progress, "LINE_SECONDS", 10.0)
    counted.refresh()
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == [
        "downloaded 1.00 of 4.00 GB (25 %)"
    ]
    assert capfd.readouterr().err == ""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_folder(tmp_path_factory.mktemp("model"), byte_level())
    return {path.name: path.read_bytes() for path in folder.iterdir()} | {
        INDEX: SHARDS.encode(),
        TWO[0]: b"1" * 1000,
        TWO[1]: b"2" * 1000,
        "consolidated.safetensors": b"12" * 1000,
        "pytorch_model.bin": b"never",
    }


@pytest.fixture(scope="module")
def hub(files: dict[str, bytes]) -> Iterator[LocalHub]:
    with local_hub() as hub:
        for name, options in {
            "org/model": {},
            "org/private": {"readers": ("hf_reader",)},
            "org/gated": {"readers": ("hf_reader",), "gated": True},
        }.items():
            hub.add(name, files, **options)
        hub.add("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"never"})
        yield hub


def ask(hub_url: str, home: Path, *orders: dict[str, Any], script: str = ASK, **env: str) -> list[str]:
    """The answers to these orders, in a process that has this hub and this cache."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    for order in orders:
        order["model"] = {"repo": order.pop("repo"), "gguf": order.pop("gguf", None)}
    result = subprocess.run(
        [sys.executable, "-c", script],
        input="".join(json.dumps(order) + "\n" for order in orders),
        capture_output=True,
        text=True,
        env=clean | {"HF_ENDPOINT": hub_url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | env,
        check=True,
    )
    return result.stdout.splitlines()


def test_a_model_comes_from_one_commit_once_and_is_there_without_the_hub(
    hub: LocalHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.requests.clear()
    (first,) = ask(hub.url, tmp_path, {"repo": "org/model"})
    wanted = {name for name in files if name not in ("consolidated.safetensors", "pytorch_model.bin")}
    folder = Path(first)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {n: files[n] for n in wanted}
    assert {r.rsplit("/", 1)[1] for r in hub.requests if r.startswith("GET /store/")} == set(TWO)
    old = folder.name
    assert all(f"/{old}/" in r for r in hub.requests if "resolve" in r)

    hub.requests.clear()
    again, by_commit = ask(hub.url, tmp_path, {"repo": "org/model"}, {"repo": "org/model", "revision": old})
    assert again == by_commit == first
    assert hub.requests == ["GET /api/models/org/model"], "one look at which commit main is"

    new = hub.push("org/model", files | {"config.json": b'{"model_type": "llama", "new": 1}'})
    moved, kept = ask(hub.url, tmp_path, {"repo": "org/model"}, {"repo": "org/model", "revision": old})
    assert (Path(moved).name, kept) == (new, first)

    # huggingface_hub#4487, mistral-common#248: a branch's name, with no hub and with one that answers 503.
    offline = ask(hub.url, tmp_path, {"repo": "org/model"}, HF_HUB_OFFLINE="1")
    unreachable = ask("http://127.0.0.1:1", tmp_path, {"repo": "org/model", "revision": "main"})
    hub.answers["/api/models"] = (503, {}, b"")
    try:
        down = ask(hub.url, tmp_path, {"repo": "org/model"})
    finally:
        hub.answers.clear()
    assert offline == unreachable == down == [moved]


def test_each_problem_is_one_line_that_says_what_to_do(hub: LocalHub, tmp_path: Path) -> None:
    cases = [
        ({"repo": "org/modle"}, "no folder org/modle here, .* or it is private: set HF_TOKEN"),
        ({"repo": "org/modle", "token": "hf_reader"}, "or the token may not see it; check the spelling"),
        ({"repo": "org/private"}, "set HF_TOKEN"),
        ({"repo": "org/private", "token": "hf_expired"}, "refuses the token, which is wrong or has expired"),
        ({"repo": "org/gated"}, "is gated: accept its terms at .*/org/gated and set HF_TOKEN"),
        ({"repo": "org/gated", "token": "hf_other"}, "the token's account has no access: ask for it"),
        ({"repo": "org/model", "revision": "v9"}, "org/model has no revision v9"),
        ({"repo": "org/pickled"}, "pickled weights only"),
        ({"repo": "org/model", "gguf": "Q4_0"}, "has no GGUF files"),
    ]
    answers = ask(hub.url, tmp_path, *(order for order, _ in cases))
    for answer, (_, words) in zip(answers, cases, strict=True):
        assert re.search(f"^refused: .*{words}", answer), answer
    assert not list(tmp_path.rglob("*.safetensors"))


def test_tokens_reach_the_hub_and_not_the_store(hub: LocalHub, tmp_path: Path) -> None:
    hub.tokens.clear()
    # A token from a secret's file ends with a line break.
    (private,) = ask(hub.url, tmp_path, {"repo": "org/private"}, HF_TOKEN="hf_reader\n")
    (gated,) = ask(hub.url, tmp_path, {"repo": "org/gated", "token": "hf_reader"})
    assert not private.startswith("refused")
    assert not gated.startswith("refused")
    assert hub.tokens == []


def test_a_cache_that_lacks_files_names_them(hub: LocalHub, files: dict[str, bytes], tmp_path: Path) -> None:
    """huggingface_hub#3371 and #3007: what was interrupted was served as if it were whole."""
    (folder,) = ask(hub.url, tmp_path, {"repo": "org/private", "token": "hf_reader"})
    (Path(folder) / TWO[1]).unlink()
    offline = ask(hub.url, tmp_path, {"repo": "org/private"}, {"repo": "org/none"}, HF_HUB_OFFLINE="1")
    assert f"lacks {TWO[1]} of org/private, and HF_HUB_OFFLINE is set" in offline[0]
    assert "does not hold org/none, and HF_HUB_OFFLINE is set" in offline[1]
    # text-generation-inference#1341, #1754: the token, or the model, is there no more.
    denied, unknown = ask(hub.url, tmp_path, {"repo": "org/private"}, {"repo": "org/none"})
    assert denied.endswith("; the cache has it from an earlier time, and HF_HUB_OFFLINE=1 serves that")
    assert unknown.endswith("check the spelling")
    # Filled by a library that keeps no listings.
    shutil.rmtree(next(tmp_path.rglob("trees")))
    (old,) = ask(hub.url, tmp_path, {"repo": "org/private"}, HF_HUB_OFFLINE="1")
    assert f"lacks {TWO[1]} of org/private" in old
    (mended,) = ask(hub.url, tmp_path, {"repo": "org/private", "token": "hf_reader"})
    assert (Path(mended) / TWO[1]).read_bytes() == files[TWO[1]]


# Root may write whatever the modes of folders say, unless it gives its capabilities away.
LIKE_ANYBODY = """
import ctypes
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
"""


def test_a_cache_that_may_only_be_read(hub: LocalHub, files: dict[str, bytes], tmp_path: Path) -> None:
    """huggingface_hub#2797, transformers#47852: a mounted cache, filled before; then the branch moves on."""
    hub.add("org/mounted", files)
    (folder,) = ask(hub.url, tmp_path, {"repo": "org/mounted"})
    folders = [tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        old = {"repo": "org/mounted", "revision": Path(folder).name}
        there = ask(hub.url, tmp_path, {"repo": "org/mounted"}, dict(old), script=LIKE_ANYBODY + ASK)
        hub.push("org/mounted", files | {"config.json": b'{"new": 1}'})
        moved, kept = ask(hub.url, tmp_path, {"repo": "org/mounted"}, dict(old), script=LIKE_ANYBODY + ASK)
        (offline,) = ask(
            hub.url, tmp_path, {"repo": "org/mounted"}, script=LIKE_ANYBODY + ASK, HF_HUB_OFFLINE="1"
        )
    finally:
        for path in folders:
            path.chmod(0o755)
    assert there == [folder, folder]
    assert kept == offline == folder
    assert re.search(r"^refused: \S+ cannot be written: Permission denied; set HF_HOME", moved), moved


def test_two_that_start_at_once_download_it_once(
    hub: LocalHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    """huggingface_hub#4306, vllm-omni#3966: two pods with one volume."""
    hub.requests.clear()
    hub.held, asked = TWO[0], f"/org/model/resolve/{hub.repos['org/model'].revisions['main']}/{TWO[0]}"
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, hub.url, tmp_path, {"repo": "org/model"})
        assert hub.reached.wait(60)
        second = pool.submit(ask, hub.url, tmp_path, {"repo": "org/model"})
        wait_for(lambda: hub.requests.count(f"HEAD {asked}") == 2, "the second one")
        hub.release.set()
        assert first.result() == second.result()
    hub.held = None
    (folder,) = first.result()
    assert (Path(folder) / TWO[0]).read_bytes() == files[TWO[0]]
    assert sum(r.startswith("GET /store/") for r in hub.requests) == 2


def test_what_is_no_hub_and_what_cannot_be_written(
    hub: LocalHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.add("org/huge", files)
    hub.answers["/org/huge/tree/"] = (
        200,
        {"Content-Type": "application/json"},
        json.dumps(
            [
                {"type": "file", "path": name, "size": size, "oid": "0" * 40}
                for name, content in files.items()
                for size in [10**18 if name in TWO else len(content)]
            ]
        ).encode(),
    )
    hub.answers["/portal/page"] = (200, {"Content-Type": "text/html"}, b"<html>log in</html>")
    hub.answers["/busy/model"] = (429, {}, b"")
    hub.answers["/fine/grained"] = (403, {}, b"")
    try:
        huge, portal, busy, fine = ask(
            hub.url,
            tmp_path,
            {"repo": "org/huge"},
            {"repo": "portal/page"},
            {"repo": "busy/model"},
            {"repo": "fine/grained", "token": "hf_reader"},
        )
    finally:
        hub.answers.clear()
    assert "needs 2000000000.00 GB more in" in huge
    assert "set HF_HOME to a folder on a larger disk" in huge
    assert portal.startswith(f"refused: portal/page cannot be downloaded from {hub.url}")
    assert "429" in busy
    assert "start again later" in busy
    assert "fine-grained token needs read access" in fine
    (nowhere,) = ask("http://127.0.0.1:1", tmp_path, {"repo": "org/none"})
    assert "http://127.0.0.1:1 cannot be reached (" in nowhere
    assert "set HF_ENDPOINT" in nowhere
    (file := tmp_path / "file").touch()
    (no_folder,) = ask(hub.url, file / "home", {"repo": "org/model"})
    assert "HF_HOME" in no_folder
    assert "set another" in no_folder


def test_what_breaks_on_the_way_is_fetched_on(hub: LocalHub, files: dict[str, bytes], tmp_path: Path) -> None:
    """huggingface_hub#3440, #2060: the rest of a file that broke off; a store that is busy for a moment."""
    large = files | {TWO[1]: b"2" * (25 << 20)}  # the library writes 10 MiB at a time
    hub.add("org/large", large)
    hub.ranges.clear()
    hub.faults[TWO[0]], hub.faults[TWO[1]] = [429, 503], [0]
    (folder,) = ask(hub.url, tmp_path, {"repo": "org/large"})
    assert [(Path(folder) / name).read_bytes() == large[name] for name in TWO] == [True, True]
    assert hub.ranges == [f"bytes={10 << 20}-"]
    assert hub.faults == {TWO[0]: [], TWO[1]: []}


def test_a_file_of_another_size(hub: LocalHub, files: dict[str, bytes], tmp_path: Path) -> None:
    """huggingface_hub#2589, #2464: a proxy's page in its place; #1498: a copy that broke off."""
    hub.answers["/store/"] = (200, {}, b"<html>log in</html>")
    (page,) = ask(hub.url, tmp_path, {"repo": "org/model"})
    hub.answers["/store/"] = (403, {}, b"<Error/>")
    (forbidden,) = ask(hub.url, tmp_path, {"repo": "org/model"})
    hub.answers.clear()
    assert "came in another size than http" in page
    assert "(19 bytes of 1000); start again, and see what proxy or mirror answers" in page
    assert re.search(rf"localhost, to which {hub.url} refers for model-\d-of-2\S+, answers 403", forbidden)
    (folder,) = ask(hub.url, tmp_path, {"repo": "org/model"})
    weights = Path(folder) / TWO[0]
    weights.resolve().write_bytes(b"1" * 10)
    (offline,) = ask(hub.url, tmp_path, {"repo": "org/model"}, HF_HUB_OFFLINE="1")
    assert f"lacks {TWO[0]} of org/model, and HF_HUB_OFFLINE is set" in offline
    assert ask(hub.url, tmp_path, {"repo": "org/model"}) == [folder]
    assert weights.read_bytes() == files[TWO[0]]


def test_a_file_of_the_right_size_with_other_bytes(
    hub: LocalHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    """A mirror or a disk on the way that changes a byte: the hub says the SHA-256 of each large file."""
    hub.answers[f"/store/org/model/{hub.repos['org/model'].find('main')}/{TWO[1]}"] = (200, {}, b"3" * 1000)
    (altered,) = ask(hub.url, tmp_path, {"repo": "org/model"})
    hub.answers.clear()
    assert f"{TWO[1]} of org/model came with other bytes than {hub.url} says" in altered
    (folder,) = ask(hub.url, tmp_path, {"repo": "org/model"})
    assert [(Path(folder) / name).read_bytes() for name in TWO] == [files[name] for name in TWO]


def test_names_revisions_and_tokens_as_people_have_them(
    hub: LocalHub, files: dict[str, bytes], tmp_path: Path
) -> None:
    """A name that the repository had before, as the hub refers from it; a branch with a slash; a token from a
    secret that is empty or ends with a line break (langchain#21261: Illegal header value)."""
    commit = hub.add("org/now", files)
    hub.moved["org/before"] = "org/now"
    hub.repos["org/now"].revisions["refs/pr/1"] = commit
    orders: list[dict[str, Any]] = [
        {"repo": "org/before"},
        {"repo": "org/now", "revision": "refs/pr/1"},
        {"repo": "org/now", "token": ""},
        {"repo": "org/private", "token": " hf_reader\n"},
        {"repo": "org/now", "token": "hf_secret with more"},
    ]
    *answers, odd = ask(hub.url, tmp_path, *orders)
    hub.moved.clear()
    assert [Path(answer).name for answer in answers[:3]] == [commit] * 3
    assert Path(answers[3]).name == hub.repos["org/private"].revisions["main"]
    assert odd.startswith("refused: the token has blanks or other odd characters inside")
    assert "secret" not in odd
