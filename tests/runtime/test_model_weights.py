from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.models.checkpoint import SafetensorsFolder, weight_files
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.mxfp4 import dequantize
from sheaf_runtime.models.weights import load_weights
from sheaf_runtime.worker.loading import load_model


@pytest.fixture
def folder(tiny_llama: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a sharded tiny Llama that the test may damage."""
    copy: Path = shutil.copytree(tiny_llama(), tmp_path / "model")
    return copy


def load(folder: Path, **options: Any) -> Any:
    return load_model(EngineConfig(model=str(folder), device="cpu", **options))


def rewrite(shard: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard, metadata={"format": "pt"})


def shard_of(folder: Path, name: str) -> Path:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / index["weight_map"][name]


def test_every_shard_is_read(folder: Path) -> None:
    assert len(weight_files(folder)) > 3
    total = sum(t.numel() * 4 for f in weight_files(folder) for t in load_file(f).values())
    assert load(folder).weights_bytes == total


def test_a_single_file_needs_no_index(folder: Path) -> None:
    tensors = {k: v for f in weight_files(folder) for k, v in load_file(f).items()}
    for file in [*weight_files(folder), folder / "model.safetensors.index.json"]:
        file.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load(folder)


def test_converts_while_copying(folder: Path) -> None:
    assert load(folder, dtype="bfloat16").dtype == torch.bfloat16
    target = torch.empty(320, 48, dtype=torch.bfloat16)
    shard = shard_of(folder, "model.embed_tokens.weight")
    tensors = load_file(shard)
    only = folder / "only"
    only.mkdir()
    save_file({"model.embed_tokens.weight": tensors["model.embed_tokens.weight"]}, only / "model.safetensors")
    assert (
        load_weights(SafetensorsFolder(only), [("model.embed_tokens.weight", target)]) == target.numel() * 2
    )
    assert torch.equal(target, tensors["model.embed_tokens.weight"].bfloat16())


def test_auto_is_the_checkpoints_dtype(tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama(dtype="bfloat16")
    assert load(folder).dtype == torch.bfloat16
    assert load(folder, dtype="float32").dtype == torch.float32


@pytest.mark.parametrize("named", [{}, {"torch_dtype": None}, {"torch_dtype": "auto"}, {"dtype": "auto"}])
def test_a_config_that_names_no_dtype(
    tiny_llama: Callable[..., Path], tmp_path: Path, named: dict[str, Any]
) -> None:
    """generative-computing/granite-switch#126, vllm-project/vllm#32737: twice the memory as float32."""
    folder: Path = shutil.copytree(tiny_llama(dtype="bfloat16"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    (folder / "config.json").write_text(json.dumps(config | named))
    assert load(folder).dtype == torch.bfloat16


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard_of(folder, "model.norm.weight").unlink()
    with pytest.raises(
        UnsupportedModelError, match=r"lacks 1 of \d+ weight files: model-\d+-of-\d+\.safetensors"
    ):
        load(folder)


def test_a_truncated_shard_is_named(folder: Path) -> None:
    shard = shard_of(folder, "model.norm.weight")
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UnsupportedModelError, match=f"{shard.name} is damaged or incomplete"):
        load(folder)


def test_a_wrong_shape_is_named(folder: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    rewrite(shard_of(folder, name), lambda t: t.update({name: t[name][:-1].clone()}))
    with pytest.raises(UnsupportedModelError, match=rf"tensor {name} is \[23, 48\].*\[24, 48\]"):
        load(folder)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    rewrite(shard_of(folder, name), lambda t: t.pop(name))
    with pytest.raises(UnsupportedModelError, match=f"lacks the tensors {name}"):
        load(folder)


def test_an_unknown_tensor_is_named(folder: Path) -> None:
    name = "model.layers.0.self_attn.q_norm.weight"
    rewrite(shard_of(folder, "model.norm.weight"), lambda t: t.update({name: torch.ones(12)}))
    with pytest.raises(UnsupportedModelError, match=f"{name}, which this architecture has no place for"):
        load(folder)


def test_integer_weights_are_refused(folder: Path) -> None:
    name = "model.norm.weight"
    rewrite(shard_of(folder, name), lambda t: t.update({name: t[name].to(torch.int8)}))
    with pytest.raises(UnsupportedModelError, match=rf"tensor {name} is torch\.int8"):
        load(folder)


def test_derived_leftovers_are_ignored(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder: Path = shutil.copytree(tiny_llama(tie_word_embeddings=True), tmp_path / "model")
    rewrite(
        shard_of(folder, "model.norm.weight"),
        lambda t: t.update(
            {
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
            }
        ),
    )
    load(folder)


def test_a_tied_model_may_store_either_of_the_two(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    folder: Path = shutil.copytree(tiny_llama(tie_word_embeddings=True), tmp_path / "model")
    expected = load(folder).decoder.embedding.clone()
    shard = shard_of(folder, "model.embed_tokens.weight")
    rewrite(shard, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert load(folder).config.tie_word_embeddings
    rewrite(shard, lambda t: t.pop("model.embed_tokens.weight"))
    assert torch.equal(load(folder).decoder.embedding, expected)


def test_a_stored_head_that_differs_is_used(
    tiny_llama: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder: Path = shutil.copytree(tiny_llama(tie_word_embeddings=True), tmp_path / "model")
    head = torch.ones(320, 48)
    rewrite(shard_of(folder, "model.norm.weight"), lambda t: t.update({"lm_head.weight": head}))
    model = load(folder)
    assert not model.config.tie_word_embeddings
    logits = model.decoder.logits(torch.arange(48.0)[None])
    assert torch.equal(logits, torch.full((1, 320), 47 * 48 / 2))
    assert "they differ" in caplog.text


def test_a_decoder_saved_without_its_head(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    """As embedding models are: names lack their first part, as transformers expects too."""
    folder: Path = shutil.copytree(tiny_llama(tie_word_embeddings=True), tmp_path / "model")
    tensors = {k: v for f in weight_files(folder) for k, v in load_file(f).items()}
    for file in [*weight_files(folder), folder / "model.safetensors.index.json"]:
        file.unlink()
    save_file({k.removeprefix("model."): v for k, v in tensors.items()}, folder / "model.safetensors")
    assert torch.equal(load(folder).decoder.embedding, tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    "name", ["._model.safetensors", "consolidated.safetensors", "model-00001-of-00002.safetensors"]
)
def test_files_beside_the_weights_are_not_more_of_them(
    tiny_llama: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    folder: Path = shutil.copytree(tiny_llama(shard_size="1GB"), tmp_path / "model")
    (folder / name).write_bytes(b"\0\5\x16\7".ljust(4096, b"\0"))
    load(folder)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    if not name.startswith("model"):
        load(folder)


def test_an_index_that_is_left_over_beside_a_single_file(
    tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    """ml-explore/mlx-swift-lm#554: transformers does not look at it."""
    folder: Path = shutil.copytree(tiny_llama(shard_size="1GB"), tmp_path / "model")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.gguf").write_bytes(b"GGUF" + b"\0" * 64)  # another form of the same model
    for name in ("config.json", "generation_config.json"):  # as a Windows editor saves them
        text = (folder / name).read_text() if (folder / name).is_file() else "{}"
        (folder / name).write_text(text, "utf-8-sig")
    assert load(folder).weights_bytes > 0


def test_a_pointer_instead_of_weights_is_called_one(folder: Path) -> None:
    """microsoft/OmniParser#34: cloned without Git LFS."""
    shard = weight_files(folder)[0]
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(UnsupportedModelError, match=rf"{shard.name} is a pointer of Git LFS"):
        load(folder)


def test_mxfp4_is_dequantized_as_in_transformers() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 6, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 6, 2), generator=generator, dtype=torch.uint8)
    assert torch.equal(dequantize(blocks, scales), convert_moe_packed_tensors(blocks, scales))


def test_pickles_are_never_read(folder: Path) -> None:
    for file in [*weight_files(folder), folder / "model.safetensors.index.json"]:
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(UnsupportedModelError, match=r"pickled weights only \(pytorch_model\.bin\).*convert"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UnsupportedModelError, match=r"no \*\.safetensors files"):
        load(folder)


def test_an_index_cannot_point_outside(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../other.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModelError, match="outside the folder"):
        load(folder)


MEASURE = """
import sys, re
from sheaf_runtime.config import EngineConfig
from sheaf_runtime.worker.loading import load_model
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
import torch
torch.empty(1)
before, peak_before = anonymous(), peak()
model = load_model(EngineConfig(model=sys.argv[1], device="cpu"))
print(model.weights_bytes, anonymous() - before, peak() - peak_before)
"""


def test_weights_are_in_memory_once(tiny_llama: Callable[..., Path]) -> None:
    """Resident memory after loading is the weights; the peak adds one shard of mapped file at most."""
    folder = tiny_llama(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=8, vocab_size=1024, shard_size="40MB"
    )
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)], capture_output=True, text=True, check=True
    )
    weights, resident, peak = map(int, run.stdout.split())
    assert weights > 200e6
    assert resident < 1.15 * weights
    assert peak < 1.15 * weights + 45e6


def test_a_missing_head_is_named_where_the_config_does_not_tie(folder: Path) -> None:
    """QwenLM/Qwen3-VL-Embedding#89: transformers would go on with a random one."""
    rewrite(shard_of(folder, "lm_head.weight"), lambda t: t.pop("lm_head.weight"))
    with pytest.raises(UnsupportedModelError, match=r"lacks the tensors lm_head\.weight"):
        load(folder)


def test_the_tokenizers_end_token_counts_too(folder: Path) -> None:
    """Blaizzy/mlx-vlm#2112, vllm-project/vllm#4180: config.json keeps the base model's end."""
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 0}))
    assert load(folder).eos_token_ids == (0, 2)  # <|im_end|> is what the tokenizer names
    (folder / "tokenizer.json").unlink()
    assert load(folder).eos_token_ids == (0,)


def test_nothing_is_as_long_as_the_context(folder: Path) -> None:
    """Llama 4 has ten million positions; a table of their angles alone would be 10 GB."""
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 10**12}))
    assert load(folder).max_model_len == 10**12
