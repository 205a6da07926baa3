"""A checkpoint in four bits out of one in floats, for benchmarks of speed: ``pack-quantized`` of
compressed-tensors with a zero point for each 64 columns, rounded without any calibration, which costs far
more quality than what people publish."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 64
MOST = 15
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}


def in_four_bits(model: Path, folder: Path) -> Path:
    """Writes the checkpoint into ``folder``. ``model`` has safetensors, and columns by multiples of 64."""
    shutil.copytree(model, folder, dirs_exist_ok=True)
    for path in folder.glob("*.safetensors"):
        tensors: dict[str, Tensor] = {}
        for name, tensor in load_file(path).items():
            if ".layers." in name and tensor.dim() == 2:
                tensors |= _packed(name.removesuffix(".weight"), tensor.float())
            else:
                tensors[name] = tensor
        save_file(tensors, path, metadata={"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
        "ignore": ["lm_head"],
    }
    path.write_text(json.dumps(config))
    return folder


def _packed(module: str, weight: Tensor) -> dict[str, Tensor]:
    groups = weight.view(len(weight), -1, GROUP)
    low, high = groups.amin(2, keepdim=True).clamp(max=0), groups.amax(2, keepdim=True).clamp(min=0)
    scale = (high - low).clamp(min=1e-8) / MOST
    zero = (-low / scale).round()
    steps = ((groups / scale).round() + zero).clamp(0, MOST).flatten(1)
    return {
        f"{module}.weight_packed": _words(steps),
        f"{module}.weight_scale": scale[..., 0],
        f"{module}.weight_zero_point": _words(zero[..., 0].T).T.contiguous(),
        f"{module}.weight_shape": torch.tensor(weight.shape),
    }


def _words(values: Tensor) -> Tensor:
    """Eight in an int32, the first lowest; what lacks is 0."""
    padded = torch.nn.functional.pad(values.long(), (0, -values.shape[1] % 8))
    words = (padded.view(len(values), -1, 8) << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
