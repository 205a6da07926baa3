"""Checkpoints of compressed-tensors: those in int8 load as they are, all else is refused by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from plan_driver import PlanDriver
from safetensors.torch import load_file, save_file
from sheaf_runtime.models import schemes
from sheaf_runtime.models.compressed import read_compressed
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.schemes import INT8_PACKED, INT8_STORED
from tiny_families import write_tiny
from torch import Tensor

SHAPE = {"head_dim": 16, "num_hidden_layers": 2, "hidden_size": 96, "intermediate_size": 200}
PROMPT = [7 + 5 * i % 211 for i in range(40)]
WEIGHTS = {
    "actorder": None,
    "block_structure": None,
    "dynamic": False,
    "group_size": None,
    "num_bits": 8,
    "observer": "minmax",
    "observer_kwargs": {},
    "strategy": "channel",
    "symmetric": True,
    "type": "int",
}
ACTIVATIONS = {**WEIGHTS, "dynamic": True, "strategy": "token", "observer": "memoryless"}
W8A8: dict[str, Any] = {
    "config_groups": {
        "group_0": {
            "input_activations": ACTIVATIONS,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": WEIGHTS,
        }
    },
    "format": "int-quantized",
    "global_compression_ratio": 1.27,
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}


def changed(path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(W8A8)
    *parts, last = path.split("/")
    at = config
    for part in parts:
        at = at[part]
    at[last] = value
    return config


W8A16 = changed("config_groups/group_0/input_activations", None) | {"format": "pack-quantized"}


def packed(weight: Tensor) -> Tensor:
    """Four to an int32, the first one lowest, each with 128 added."""
    quads = (weight.long() + 128).unflatten(1, (-1, 4))
    whole = sum(quads[..., i] << 8 * i for i in range(4))
    assert isinstance(whole, Tensor)
    return torch.where(whole >= 1 << 31, whole - (1 << 32), whole).to(torch.int32)


def by_channel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """As ``rounded_to_int8`` gives it, with all scales of a row the same."""
    scale = weight.float().abs().amax(dim=1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale.expand(-1, -(-weight.shape[1] // schemes.GROUP))


def compress(folder: Path, config: dict[str, Any]) -> None:
    """Store the matrices of the folder's layers in int8, and say so."""
    for path in folder.glob("*.safetensors"):
        tensors: dict[str, Tensor] = {}
        for name, tensor in load_file(path).items():
            if not name.startswith("model.layers.") or tensor.dim() == 1:
                tensors[name] = tensor
                continue
            weight, scale = by_channel(tensor)
            tensors[f"{name}_scale"] = scale[:, :1].contiguous()
            if config["format"] == "int-quantized":
                tensors[name] = weight
            else:
                tensors[f"{name}_packed"] = packed(weight)
                tensors[f"{name}_shape"] = torch.tensor(weight.shape)
        save_file(tensors, path, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    where = {name: path.name for path in folder.glob("*.safetensors") for name in load_file(path)}
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))


def logits(folder: Path, **options: Any) -> Tensor:
    driver = PlanDriver(str(folder), block_size=16, **options)
    request = driver.add(PROMPT)
    driver.generate([request], 3, chunk=17)
    return torch.stack(request.logits)


@pytest.mark.parametrize("config", [W8A8, W8A16], ids=["W8A8", "W8A16"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "starcoder2"])
def test_what_is_stored_is_what_would_be_made(
    family: str, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same integers and scales as from floats, so the same bits: with --quantization int8 the head too.
    Channels of queries and keys are put in another order, and their scales with them (vllm#42803)."""
    monkeypatch.setattr(schemes, "rounded_to_int8", by_channel)
    folder = write_tiny(tmp_path, family, tie_word_embeddings=False, **SHAPE)
    made, floats = logits(folder, quantization="int8"), logits(folder)
    compress(folder, config)
    assert torch.equal(logits(folder, quantization="int8"), made)
    head_as_it_is = logits(folder)
    assert not torch.equal(head_as_it_is, made)
    assert (head_as_it_is - floats).std() < 0.1 * floats.std()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (changed("config_groups/group_0/weights/num_bits", 4), "weights.num_bits is 4"),
        (changed("config_groups/group_0/weights/type", "float"), "weights.type is 'float'"),
        (changed("config_groups/group_0/weights/strategy", "tensor"), "weights.strategy is 'tensor'"),
        (changed("config_groups/group_0/weights/strategy", "group"), "weights.strategy is 'group'"),
        (changed("config_groups/group_0/weights/symmetric", False), "weights.symmetric is False"),
        (changed("config_groups/group_0/weights/actorder", "group"), "weights.actorder is 'group'"),
        (changed("config_groups/group_0/weights", None), "weights is None"),
        (changed("config_groups/group_0/input_activations/dynamic", False), "input_activations.dynamic"),
        (changed("config_groups/group_0/input_activations/symmetric", False), "input_activations.symmetric"),
        (changed("config_groups/group_0/output_activations", ACTIVATIONS), "output_activations is"),
        (changed("config_groups/group_0/targets", ["re:.*mlp.*"]), "targets is"),
        (changed("config_groups", {"a": {}, "b": {}}), "config_groups is '2 groups'"),
        (changed("config_groups", None), "config_groups is None"),
        (changed("kv_cache_scheme", {"num_bits": 8}), "kv_cache_scheme is"),
        (changed("sparsity_config", {"format": "sparse-24-bitmask"}), "sparsity_config is"),
        (changed("transform_config", {"config_groups": {"R1": {}}}), "transform_config is"),
        (changed("ignore", []), r"ignore is \[\]"),
        (changed("ignore", ["lm_head", "model.layers.0.mlp.down_proj"]), "ignore is"),
        (changed("format", "naive-quantized"), "format is 'naive-quantized'"),
        (changed("format", "pack-quantized"), "format is 'pack-quantized'"),
    ],
)  # fmt: skip
def test_all_else_is_refused_by_name(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"quantization_config: {words}") as caught:
        read_compressed(config)
    assert "\n" not in str(caught.value)


def test_the_schemes() -> None:
    assert read_compressed(W8A8) == INT8_STORED
    assert read_compressed(W8A16) == INT8_PACKED
    assert read_compressed(changed("config_groups/group_0/input_activations", None)) == INT8_STORED


def test_a_checkpoint_that_is_not_what_it_says(tmp_path: Path) -> None:
    """sglang#34904: a scale that nobody takes is no mere warning, and integers are not read as floats."""
    folder = write_tiny(tmp_path, "llama", tie_word_embeddings=False, **SHAPE)
    path = folder / "config.json"
    plain = path.read_text()
    path.write_text(json.dumps(json.loads(plain) | {"quantization_config": W8A8}))
    with pytest.raises(UnsupportedModelError, match=r"is torch.float32 in the checkpoint, but .* torch.int8"):
        logits(folder)
    path.write_text(plain)
    compress(folder, W8A8)
    path.write_text(plain)
    with pytest.raises(UnsupportedModelError, match=r"is torch.int8 in the checkpoint|no place for"):
        logits(folder)


def test_where_it_is_refused(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "dense", "llama", **SHAPE)
    compress(folder, W8A8)
    with pytest.raises(ValueError, match="the checkpoint's int8 weights need the CPU kernels"):
        logits(folder, attention_backend="torch")
    folder = write_tiny(tmp_path / "experts", "mixtral", **SHAPE)
    compress(folder, W8A8)
    with pytest.raises(UnsupportedModelError, match=r"compressed-tensors.*not supported for experts"):
        logits(folder)
