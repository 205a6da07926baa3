"""Random tiny Llama folders: real files in the real format, a real tokenizer, nonsense weights.

Written by transformers itself, which tests then compare with: any shape and dtype, tied or sharded weights,
exactly as published models are stored. `tiny_llama` is for tests that get along without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "A sheaf is a bundle of pages, and the pages of a sheaf are read in the order of the table. " * 4


def write_tiny_llama(folder: Path, *, seed: int = 0, shard_size: str = "40KB", **overrides: Any) -> Path:
    """Write a model folder; ``overrides`` are fields of transformers' ``LlamaConfig``.

    Weights are large enough that logits differ clearly between tokens and positions matter.
    """
    config = LlamaConfig(
        **{
            "vocab_size": 320,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **overrides,
        }
    )
    generator = torch.Generator().manual_seed(seed)
    model: Any = LlamaForCausalLM(config).to(config.dtype or torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.2 * noise)
    end: Any = GenerationConfig
    model.generation_config = end(bos_token_id=1, eos_token_id=[2, 0])
    model.save_pretrained(folder, max_shard_size=shard_size)
    tiny_tokenizer(config.vocab_size).save_pretrained(folder)
    return folder


def tiny_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
