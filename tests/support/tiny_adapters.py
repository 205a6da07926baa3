"""LoRA adapters for tiny models, made and saved by peft itself, which tests then compare with."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def write_adapter(folder: Path, model: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Write an adapter for the model; ``overrides`` are fields of peft's ``LoraConfig``. It changes answers
    clearly."""
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM"} | overrides
    )
    with warnings.catch_warnings(action="ignore"):
        made: Any = get_peft_model(base_of(model), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    made.save_pretrained(folder)
    return folder


def base_of(model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(model).eval()


def with_adapter(model: Path, adapter: Path | None) -> Any:
    """transformers' model, with peft's adapter in it if there is one."""
    base = base_of(model)
    if adapter is None:
        return base
    with warnings.catch_warnings(action="ignore"):  # of peft about transformers
        return PeftModel.from_pretrained(base, adapter).eval()


def reference(model: Any, prompt: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    """Greedy tokens and the logits that they were chosen from, [count, V]."""
    tokens, logits = list(prompt), []
    with torch.no_grad():
        for _ in range(count):
            last = model(input_ids=torch.tensor([tokens])).logits[0, -1]
            logits.append(last)
            tokens.append(int(last.argmax()))
    return tokens[len(prompt) :], torch.stack(logits)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(folder: Path, change: Any) -> None:
    """``change`` gets the tensors by name and returns those to write."""
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
