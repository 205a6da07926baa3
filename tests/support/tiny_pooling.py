"""Random tiny embedding models and rerankers, as sentence-transformers and transformers write folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_families import COMMON, FAMILIES, write_tiny
from tiny_models import tiny_tokenizer
from tokenizers import processors

MODULE = "sentence_transformers.models."
EOS = ("<|endoftext|>", 0)


def write_embedder(
    folder: Path,
    family: str = "qwen3",
    *,
    mode: str = "lasttoken",
    normalize: bool = True,
    prompts: dict[str, str] | None = None,
    headless: bool = False,
    **overrides: Any,
) -> Path:
    """A folder like that of Qwen3-Embedding. ``headless``: as saved from ``Qwen3Model``, names without their
    first part and no head."""
    write_tiny(folder, family, tokenizer=True, **overrides)
    append_end(folder)
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * normalize
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": MODULE + kind}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    write_json(folder / "modules.json", modules)
    write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 48, f"pooling_mode_{mode}": True}
    )
    about = {"prompts": prompts or {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", about)
    if headless:
        behead(folder)
    return folder


def write_scorer(folder: Path, family: str = "qwen3", *, labels: int = 1, **overrides: Any) -> Path:
    """``...ForSequenceClassification`` with a score matrix."""
    architecture, fields = FAMILIES[family]
    name = architecture.replace("ForCausalLM", "ForSequenceClassification")
    model_class: Any = getattr(transformers, name)
    config = model_class.config_class(**{**COMMON, **fields, "num_labels": labels, **overrides})
    torch.manual_seed(0)
    model = model_class(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(1 + 0.2 * noise if "norm" in key else 0.2 * noise)
    model.save_pretrained(folder)
    tiny_tokenizer(config.vocab_size).save_pretrained(folder)
    return folder


def append_end(folder: Path) -> None:
    """Texts end with a token that the tokenizer adds, as Qwen3-Embedding's do."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    post = processors.TemplateProcessing(single=f"$A {EOS[0]}", special_tokens=[EOS])
    tokenizer["post_processor"] = json.loads(post.__getstate__())
    path.write_text(json.dumps(tokenizer))


def behead(folder: Path) -> None:
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    for path in folder.glob("*.index.json"):
        path.unlink()
    kept = {k.removeprefix("model."): v for k, v in tensors.items() if not k.startswith("lm_head")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [config["architectures"][0].replace("ForCausalLM", "Model")]
    config["tie_word_embeddings"] = False
    write_json(folder / "config.json", config)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))
