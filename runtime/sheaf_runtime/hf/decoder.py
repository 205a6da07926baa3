"""A decoder of transformers as the worker wants it: the requests of a step as one flat sequence of tokens,
attention on our pages.

Legend: T tokens of the step, C hidden size, V vocabulary, R rows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from sheaf_runtime.hf.interface import AttentionHook
from sheaf_runtime.hf.probe import AttentionCall, check, probe
from sheaf_runtime.models.config import AttentionConfig, DecoderConfig, LayerConfig
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.layers import Angles, Attention, Computed, StepAdapters, Want
from sheaf_runtime.models.parse import eos_token_ids, read_generation_config, refuse_quantized


class TransformersDecoder:
    """Raises ``UnsupportedModelError`` for what cannot run on pages: tokens must look at each other by causal
    attention and in no other way."""

    def __init__(
        self,
        folder: Path,
        raw: dict[str, Any],
        *,
        dtype: torch.dtype,
        device: torch.device,
        head: bool = True,
        generation_config: str = "auto",
    ) -> None:
        refuse_quantized(raw)
        self._hook = AttentionHook()
        self._model = _load(folder, self._hook, dtype, head=head).to(device)
        calls = _attempt(lambda: probe(self._model, self._hook))
        generation = read_generation_config(folder, generation_config)
        self.config = _describe(self._model.config.get_text_config(), raw, generation, calls)
        self._head = _Head.of(self._model)
        _attempt(lambda: check(self._model, self._hook, calls))

    @property
    def weights_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self._model.parameters())

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        prompt_lens_T: Tensor,
        attention: Attention,
        *,
        rows_S: Tensor | None = None,
        want: Want = "hidden",
        angles: list[Angles] | None = None,
        adapters: StepAdapters | None = None,
    ) -> Computed:
        """Keys and values go to the pages on the way. See ``models.decoder.Decoder``."""
        assert adapters is None, "refused when the model is loaded"
        shape = (len(tokens_T), self.config.attention.head_dim // 2)
        # Rotated already: by nothing, then.
        cos, sin = torch.ones(shape, device=tokens_T.device), torch.zeros(shape, device=tokens_T.device)

        def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
            qkv_TND = torch.cat((q, k, v), dim=1).squeeze(0).transpose(0, 1)
            q_TQD = attention.write_kv(module.layer_idx, qkv_TND, cos, sin)
            sinks = options.get("s_aux")
            return attention.attend(module.layer_idx, q_TQD, sinks).unsqueeze(0)

        with self._hook.answered_by(attend):
            output = self._model.base_model(
                input_ids=tokens_T.long()[None], position_ids=positions_T[None], use_cache=False
            )
        hidden_TC: Tensor = output.last_hidden_state[0]
        if rows_S is not None:
            hidden_TC = hidden_TC[rows_S]
        return Computed(hidden_TC, None if want == "hidden" else self.logits(hidden_TC))

    def angles(self, positions_T: Tensor, prompt_lens_T: Tensor) -> list[Angles]:
        """transformers' own business."""
        return []

    def logits(self, hidden_RC: Tensor) -> Tensor:
        """Next-token logits [R, V] of the given rows of ``forward``'s result."""
        ids = torch.zeros(1, len(hidden_RC), dtype=torch.int64, device=hidden_RC.device)
        self._head.base.hidden = hidden_RC[None]
        logits: Tensor = self._head.model(input_ids=ids, use_cache=False).logits[0]
        return logits


class _Given(torch.nn.Module):
    """Stands where the layers were and returns what they have returned."""

    hidden: Tensor

    def __getattr__(self, name: str) -> Any:  # some heads reach into their decoder for a part of it
        return self

    def forward(self, *args: Any, **kwargs: Any) -> _Output:
        return _Output(self.hidden)


class _Output:
    """What a decoder returns; everything else that its head may pass on is None."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: Any) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


@dataclass(frozen=True)
class _Head:
    """Whatever the model does between its last hidden states and the logits."""

    model: Any
    base: _Given

    @classmethod
    def of(cls, model: Any) -> _Head:
        head, base = copy.copy(model), _Given()
        head._modules = {**model._modules, model.base_model_prefix: base}
        return cls(head, base)


def _load(folder: Path, hook: AttentionHook, dtype: torch.dtype, *, head: bool) -> Any:
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = _attempt(lambda: AutoConfig.from_pretrained(folder, **local))
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{config.model_type} is an encoder-decoder; only decoders are served")
    model_class: Any = _attempt(lambda: AutoModelForCausalLM._model_mapping[type(config)])
    if not model_class._supports_attention_backend:
        raise UnsupportedModelError(f"{model_class.__name__} does not use transformers' attention interface")
    options = {**local, "use_safetensors": True, "dtype": dtype, "attn_implementation": hook.name}
    transformers_logging: Any = logging
    transformers_logging.disable_progress_bar()
    model, found = _attempt(lambda: model_class.from_pretrained(folder, output_loading_info=True, **options))
    missing = sorted(found["missing_keys"])
    if not head:  # a decoder that was saved without it
        missing = [name for name in missing if name.startswith(model_class.base_model_prefix + ".")]
    if model.base_model is model:
        raise UnsupportedModelError(f"{model_class.__name__} does not say which part of it is the decoder")
    if missing:
        raise UnsupportedModelError(f"the checkpoint lacks the tensors {', '.join(missing[:3])}")
    return model.eval()


def _attempt(call: Any) -> Any:
    """Whatever transformers raises for a folder is about the folder."""
    try:
        return call()
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"transformers' model cannot run on pages: {error}") from error
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedModelError(f"transformers cannot load the model: {line}") from error


def _describe(
    config: Any, raw: dict[str, Any], generation: dict[str, Any], calls: list[AttentionCall]
) -> DecoderConfig:
    """What the cache and attention must know. Raises ``UnsupportedModelError``."""
    name = config.model_type
    layers = config.num_hidden_layers
    seen = [call.layer for call in calls]
    if len(set(seen)) < layers:
        raise UnsupportedModelError(
            f"{name}: {len(set(seen))} of {layers} layers are attention; state-space and hybrid models are "
            "not supported"
        )
    if seen != list(range(layers)):
        raise UnsupportedModelError(f"{name}: a layer attends more than once, which is not supported")
    first = calls[0]
    if len(set(first.head_dims)) > 1:
        raise UnsupportedModelError(
            f"{name}: keys and values differ in size (latent attention), which is not supported"
        )
    same = ("num_heads", "num_kv_heads", "head_dims", "scale", "softcap", "sinks")
    for field in same:
        if len({getattr(call, field) for call in calls}) > 1:
            raise UnsupportedModelError(f"{name}: {field} differs between layers, which is not supported")
    length = getattr(config, "max_position_embeddings", None)
    if type(length) is not int or length <= 0:
        raise UnsupportedModelError(f"{name}: config.json has no max_position_embeddings")
    return DecoderConfig(
        architecture=name,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        max_position_embeddings=length,
        layers=tuple(LayerConfig(window=call.window) for call in calls),
        attention=AttentionConfig(
            num_heads=first.num_heads,
            num_kv_heads=first.num_kv_heads,
            head_dim=first.head_dims[0],
            scale=first.scale,
            softcap=first.softcap,
            sinks=first.sinks,
        ),
        checkpoint_dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        eos_token_ids=eos_token_ids(raw, generation, config.vocab_size),
    )
