"""Small tokenizers of the kinds that real models have, built with ``tokenizers``, and folders around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIALS = ("<|end|>", "<|bos|>", "<|turn|>")  # ids 0, 1, 2
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|turn|>' + message['role'] + ':' + message['content'] | trim + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>assistant:' }}{% endif %}"
)


def byte_level() -> Tokenizer:
    """Every byte is a token, and a few pairs are: like GPT-2, Llama 3, Qwen, SmolLM."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    merges = [("t", "h"), ("Ġ", "th"), ("Ġth", "e"), ("e", "r"), ("ð", "Ł"), ("ðŁ", "ĺ"), ("â", "Ĥ")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 1)]
    )
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Words with a leading ▁, unknown characters as byte tokens: like Llama 2, Mistral 7B, Gemma."""
    words = ["▁", "▁the", "▁hello", "he", "llo", "é", "世", ",", "▁▁", "a", "b", "!"]
    tokens = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *words, *"theo"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def metaspace() -> Tokenizer:
    """Unigram with a metaspace: like T5."""
    pieces = ["▁", "▁the", "▁hello", "he", "llo", "é", "世", ",", "a", "b", "t", "h", "e", "l", "o", "▁a"]
    tokenizer = Tokenizer(
        models.Unigram(
            [("<unk>", 0.0), *((piece, -float(i + 1)) for i, piece in enumerate(pieces))], unk_id=0
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer, **tokenizer_config: Any) -> Path:
    """A folder that the API process can serve; it has no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": "<|bos|>",
        "eos_token": "<|end|>",
        "chat_template": CHAT_TEMPLATE,
    } | tokenizer_config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    )
    (folder / "generation_config.json").write_text(
        json.dumps({"temperature": 0.7, "top_p": 0.9, "top_k": 20})
    )
    return folder
