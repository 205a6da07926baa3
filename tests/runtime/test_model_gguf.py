"""GGUF files load directly: numbers as ggml's library reads them, models as what they were written from."""

from __future__ import annotations

import contextlib
import json
import signal
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import gguf
import httpx
import numpy as np
import pytest
import torch
from gguf.quants import dequantize as ggml_dequantize
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import serving, wait_for
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.gguf.errors import GGUFError
from sheaf_runtime.gguf.folder import find_gguf, open_folder
from sheaf_runtime.gguf.reader import BLOCKS, GGUFFile
from sheaf_runtime.gguf.tokenizer import _PRE
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.gguf_quants import dequantize
from sheaf_runtime.text.tokenizer import Tokenizer
from sheaf_runtime.worker.loading import load_model
from tiny_families import write_tiny
from tiny_gguf import write_gguf

WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}  # rows are whole blocks of 32
PARAMS = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPTS = [[5, 6, 7], list(range(10, 50)), [9] * 17]


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_are_read_as_ggml_reads_them(kind: str) -> None:
    numbers, size = BLOCKS[kind]
    raw = np.random.default_rng(0).integers(0, 256, (7, 3 * size), dtype=np.uint8)
    if kind.startswith("Q"):  # scales must be ordinary numbers; quants may be any
        halves = raw.reshape(-1, size)
        places = {"Q6_K": [208], "Q4_1": [0, 2], "Q4_K": [0, 2]}.get(kind, [0])
        for place in places:
            halves[:, place : place + 2] = np.array([0.37], "<f2").view(np.uint8)
    want = ggml_dequantize(raw, gguf.GGMLQuantizationType[kind])
    got = dequantize(raw.reshape(-1), kind).reshape(7, 3 * numbers)
    np.testing.assert_array_equal(got, want.astype(np.float32))


def test_the_sizes_of_blocks_are_ggmls() -> None:
    for kind, sizes in BLOCKS.items():
        assert sizes == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]


def greedy(model: str | Path) -> list[list[int]]:
    with LLM(str(model), block_size=4, num_gpu_blocks_override=200, dtype="float32") as llm:
        return [c.token_ids for c in llm.generate(PROMPTS, PARAMS)]


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
        ("qwen2", {"use_sliding_window": False, "rope_parameters": None}),
        ("qwen3", {"attention_bias": False, "rope_parameters": None}),
        ("gemma2", {"query_pre_attn_scalar": 32}),
        (
            "gemma3",
            {
                "query_pre_attn_scalar": 32,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                },
            },
        ),
        ("granite", {"attention_bias": False, "mlp_bias": False, "head_dim": 16, "hidden_size": 64}),
    ],
)
def test_tokens_equal_the_folder_that_was_written(
    family: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_tiny(tmp_path / "hf", family, tokenizer=True, **{**WIDE, **overrides})
    assert greedy(write_gguf(folder, tmp_path / "model.gguf")) == greedy(folder)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantized_models_are_what_transformers_makes_of_them(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    fields = {**WIDE, "head_dim": 16, "rope_parameters": None}  # transformers does not read head_dim
    folder = write_tiny(tmp_path / "hf", "llama", tokenizer=True, **fields)
    path = write_gguf(folder, tmp_path / "model.gguf", kind, **{"llama.vocab_size": 320})
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    for prompt, tokens in zip(PROMPTS, greedy(path), strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        assert tokens == logits.argmax(-1).tolist()


def test_llama_3s_stretching_is_a_tensor(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "hf", "llama", tokenizer=True, rope_parameters=None, **WIDE)
    path = write_gguf(folder, tmp_path / "model.gguf")
    config = json.loads((open_folder(path) / "config.json").read_text())
    factors = [1.0 + i for i in range(16)]
    config["rope_parameters"] = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": 1.0,
        "original_max_position_embeddings": 256,
    }
    (folder / "config.json").write_text(json.dumps(config))
    expected = greedy(folder)
    with pytest.MonkeyPatch.context() as patch:
        add = gguf.GGUFWriter.write_header_to_file

        def with_factors(writer: Any, *args: Any) -> None:
            writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
            add(writer, *args)

        patch.setattr(gguf.GGUFWriter, "write_header_to_file", with_factors)
        assert greedy(write_gguf(folder, tmp_path / "stretched.gguf")) == expected


def test_the_header_becomes_a_folder(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "hf", "llama", tokenizer=True, rms_norm_eps=1e-5, **WIDE)
    path = write_gguf(folder, tmp_path / "model.gguf")
    assert find_gguf(path) == find_gguf(tmp_path) == path
    assert find_gguf(folder) is None
    unpacked = open_folder(str(tmp_path))
    files = {p.name: p for p in unpacked.iterdir()}
    config = json.loads(files["config.json"].read_text())
    assert config["rms_norm_eps"] == 1e-5  # not the float32 that is stored
    # The file's end token, and the control tokens that end a turn whatever the file says.
    assert json.loads(files["generation_config.json"].read_text())["eos_token_id"] == [2, 0]
    assert json.loads(files["tokenizer_config.json"].read_text())["eos_token"] == "<|im_end|>"
    ours, theirs = Tokenizer.from_folder(unpacked), Tokenizer.from_folder(folder)
    for text in ("A sheaf of pages, 1995.", "<|im_start|>user\n naïve 🙂<|im_end|>"):
        assert ours.encode(text) == theirs.encode(text)


def test_the_folder_of_a_header_is_one_like_any_other(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "hf", "llama", tokenizer=True, **WIDE)
    path = write_gguf(folder, tmp_path / "model.gguf")
    unpacked = open_folder(path)
    missing = unpacked / "1_Pooling" / "config.json"
    assert isinstance(unpacked, Traversable)
    assert (unpacked.is_dir(), unpacked.is_file(), missing.is_dir(), missing.is_file()) == (
        True,
        *[False] * 3,
    )
    assert (missing.name, str(missing)) == ("config.json", f"{path}/1_Pooling/config.json")
    for read in (missing.read_text, missing.read_bytes, missing.open, (unpacked / "x").open):
        with pytest.raises(FileNotFoundError, match=str(path)):
            read()
    config = unpacked / "config.json"
    assert config.open("rb").read() == config.read_bytes() == config.open().read().encode()
    assert list(config.iterdir()) == []
    assert unpacked.joinpath("a", "b") == unpacked / "a/b" != unpacked
    assert open_folder(path) is unpacked
    write_gguf(folder, path, **{"llama.context_length_extra": 1})
    assert open_folder(path) is not unpacked, "the file has changed"
    with pytest.raises(UnsupportedModelError, match="leave out --model-impl transformers"):
        load_model(EngineConfig(model=str(path), model_impl="transformers"))


def test_a_killed_server_of_a_gguf_file_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny(tmp_path / "hf", "llama", tokenizer=True, **WIDE)
    path = write_gguf(folder, tmp_path / "model.gguf")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with serving(path, tmp_path) as server:
        server.wait_ready()
        core = server.core_pid()
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}).status_code == 200
        server.terminate(signal.SIGKILL)
        server.wait_exit()
        wait_for(lambda: not Path(f"/proc/{core}").exists(), "the core to end")
        assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_text_is_cut_as_the_model_does(pre: str, tmp_path: Path) -> None:
    assert pre in _PRE
    folder = write_tiny(tmp_path / "hf", "llama", tokenizer=True, **WIDE)
    write_gguf(folder, tmp_path / "model.gguf")
    file = GGUFFile(tmp_path / "model.gguf")
    file.metadata["tokenizer.ggml.pre"] = pre
    from sheaf_runtime.gguf.tokenizer import tokenizer_json
    from tokenizers import Tokenizer as RustTokenizer

    tokenizer = RustTokenizer.from_str(tokenizer_json(file))
    assert tokenizer.pre_tokenizer is not None
    cut = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("I'm 12345 in\n\n x")]
    numbers = {"gpt-2": ["Ġ12345"], "smollm": ["1", "2", "3", "4", "5"], "llama-bpe": ["123", "45"]}
    for piece in numbers.get(pre, ["1", "2", "3", "4", "5"]):
        assert piece in cut
    assert "'m" in cut


def test_a_sentencepiece_vocabulary(tmp_path: Path) -> None:
    """Byte-pair encoding by scores, unknown characters as bytes, a space before the text; against
    transformers' own reading of the same file."""
    words = [
        "▁",
        "h",
        "e",
        "l",
        "o",
        "w",
        "r",
        "d",
        "he",
        "ll",
        "hell",
        "hello",
        "▁hello",
        "▁w",
        "or",
        "ld",
        "orld",
    ]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words]
    folder = write_tiny(tmp_path / "hf", "llama", tokenizer=True, vocab_size=len(tokens), **WIDE)
    with pytest.MonkeyPatch.context() as patch:

        def add(writer: Any, _: Path) -> None:
            writer.add_tokenizer_model("llama")
            writer.add_token_list(tokens)
            writer.add_token_scores([0.0] * 259 + [-float(len(words) - i) for i in range(len(words))])
            writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(words))
            writer.add_bos_token_id(1)
            writer.add_eos_token_id(2)
            writer.add_unk_token_id(0)

        patch.setattr("tiny_gguf._add_tokenizer", add)
        path = write_gguf(folder, tmp_path / "model.gguf")
    tokenizer = Tokenizer.from_folder(open_folder(path))
    names = [tokenizer.token(i) for i in tokenizer.encode("hello world é")]
    assert names == ["<s>", "▁hello", "▁w", "orld", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("hello world é")) == "hello world é"


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "hf", "llama", tokenizer=True, **WIDE)
    for number, (metadata, message) in enumerate(
        [
            ({"split.count": 3}, "one of 3 parts; merge them with gguf-split"),
            ({"llama.expert_count": 4}, "llama with experts; GGUF files are read for llama, granite"),
            ({"llama.rope.scaling.type": "longrope"}, "rope scaling 'longrope'; linear and yarn can be read"),
        ]
    ):
        path = write_gguf(folder, tmp_path / f"{number}.gguf", **metadata)
        with pytest.raises(GGUFError, match=message):
            open_folder(path)
    with pytest.raises(GGUFError, match=r"has 3 GGUF files; name one of them, as .*0\.gguf"):
        find_gguf(tmp_path)
    (tmp_path / "empty.gguf").write_bytes(b"")
    with pytest.raises(GGUFError, match="cannot read"):
        GGUFFile(tmp_path / "empty.gguf")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    return write_gguf(write_tiny(folder / "hf", "llama", tokenizer=True, **WIDE), folder / "model.gguf")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_and_never_more(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    raw = bytearray(sound.read_bytes())
    header = GGUFFile(sound).tensors["token_embd.weight"].offset
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(4, len(raw) - 1)) :]
    else:
        start = data.draw(st.integers(4, header - 9))
        raw[start : start + 8] = data.draw(st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f" * 2]))
    path = tmp_path_factory.mktemp("damaged") / "model.gguf"
    path.write_bytes(raw)
    with contextlib.suppress(GGUFError):
        GGUFFile(path)


def test_the_api_names_the_file_and_not_the_folder_made_from_it(tmp_path: Path) -> None:
    path = write_gguf(write_tiny(tmp_path / "hf", "llama", tokenizer=True, **WIDE), tmp_path / "m.gguf")
    with serving(path, tmp_path) as server:
        server.wait_ready()
        response = server.get("/v1/models")
        assert response is not None
        (row,) = response.json()["data"]
        assert (row["id"], row["root"]) == (str(path), str(path))
        server.terminate()
        assert server.wait_exit() == 0
        assert f"loading {path}" in server.output()
