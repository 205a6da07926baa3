"""The tensors of a GGUF file by transformers' names, dequantized as they are read."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor

from sheaf_runtime.gguf.config import family_of
from sheaf_runtime.gguf.errors import GGUFError
from sheaf_runtime.gguf.reader import GGUFFile
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.gguf_quants import dequantize

_GLOBAL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_IN_CONFIG = ("rope_freqs.weight",)  # these are numbers of config.json here


class GGUFCheckpoint:
    """``head_dim`` puts channels in order where the file pairs neighbouring ones. Raises
    ``UnsupportedModelError``."""

    def __init__(self, file: GGUFFile, head_dim: int) -> None:
        self._file = file
        try:
            self._family = family_of(self._file)
        except GGUFError as error:
            raise UnsupportedModelError(str(error)) from error
        self._head_dim = head_dim
        self._stored = {self._name(name): name for name in self._file.tensors if name not in _IN_CONFIG}
        self.names = frozenset(self._stored)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name in self._stored:
            yield name, self.read(name)

    def read(self, name: str) -> Tensor:
        info = self._file.tensors[self._stored[name]]
        tensor = torch.from_numpy(dequantize(self._file.read(info), info.type)).view(info.shape)
        if self._family.norm_shift and name.endswith("norm.weight"):
            return tensor - self._family.norm_shift
        if self._family.interleaved and ("self_attn.q_proj" in name or "self_attn.k_proj" in name):
            # Channels 2d and 2d + 1 of the file are d and d + D/2 of transformers.
            pairs = tensor.view(-1, self._head_dim // 2, 2, *tensor.shape[1:])
            return pairs.transpose(1, 2).reshape(tensor.shape)
        return tensor

    def _name(self, stored: str) -> str:
        if stored in _GLOBAL:
            return _GLOBAL[stored]
        match = _IN_LAYER.fullmatch(stored)
        part = match and {**_LAYER, **self._family.norms}.get(match[2])
        if match is None or part is None:
            raise UnsupportedModelError(f"{self._file.path} holds {stored}, which has no place in the model")
        return f"model.layers.{match[1]}.{part}.{match[3]}"
