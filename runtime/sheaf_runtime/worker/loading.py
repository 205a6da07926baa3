"""From an ``EngineConfig`` to a loaded model on its device, and the facts that others need of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.resources.abc import Traversable
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sheaf_runtime.config import EngineConfig, Quantization
from sheaf_runtime.gguf.folder import HeaderFolder, open_folder
from sheaf_runtime.models.checkpoint import Checkpoint, SafetensorsFolder, stored_dtype
from sheaf_runtime.models.config import DecoderConfig, LayerConfig
from sheaf_runtime.models.decoder import Decoder
from sheaf_runtime.models.errors import UnsupportedModelError
from sheaf_runtime.models.gguf_checkpoint import GGUFCheckpoint
from sheaf_runtime.models.layers import Angles, Attention, Computed, StepAdapters, Want
from sheaf_runtime.models.overrides import overridden
from sheaf_runtime.models.packed import Format, PackedCheckpoint
from sheaf_runtime.models.parse import QUANTIZED, is_native, load_model_config, read_config
from sheaf_runtime.models.schemes import INT4_GROUPED, INT8_GROUPED, PLAIN, Scheme
from sheaf_runtime.models.weights import load_weights, untie_if_different
from sheaf_runtime.pooling.folder import causal_architectures, read_pooling
from sheaf_runtime.pooling.spec import PoolingSpec
from sheaf_runtime.text.tokenizer import Tokenizer, TokenizerError
from sheaf_runtime.worker.adapters import Adapters
from sheaf_runtime.worker.backend import Backend, make_ops, resolve_backend
from sheaf_runtime.worker.kv_layout import KVLayout, kv_layout
from sheaf_runtime.worker.pooling import Pooler

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Model(Protocol):
    """A decoder, our own or transformers'."""

    @property
    def config(self) -> DecoderConfig: ...
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
    ) -> Computed: ...
    def angles(self, positions_T: Tensor, prompt_lens_T: Tensor) -> list[Angles]: ...
    def logits(self, hidden_RC: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LoadedModel:
    decoder: Model
    device: torch.device
    dtype: torch.dtype
    max_model_len: int
    weights_bytes: int
    backend: Backend
    eos_token_ids: tuple[int, ...]
    pooling: PoolingSpec | None = None
    pooler: Pooler | None = None
    adapters: Adapters | None = None

    @property
    def pooled_size(self) -> int | None:
        if self.pooling is None:
            return None
        return self.config.hidden_size if self.pooling.score is None else 1

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config

    def kv_layout(self, block_size: int) -> KVLayout:
        """Raises ``UnsupportedModelError`` if chunks that attention is within begin inside of pages."""
        c = self.config.attention
        layers = tuple(map(self._within_length, self.config.layers))
        for layer in layers:
            if layer.chunk is not None and layer.chunk % block_size:
                raise UnsupportedModelError(
                    f"config.json: attention_chunk_size ({layer.chunk}) is no multiple of --block-size "
                    f"({block_size}); choose another, or a --max-model-len up to {layer.chunk}"
                )
        return kv_layout(layers, 2 * c.num_kv_heads * block_size * c.head_dim * self.dtype.itemsize)

    def _within_length(self, layer: LayerConfig) -> LayerConfig:
        """A chunk that no context leaves is none."""
        inside = layer.chunk is not None and layer.chunk >= self.max_model_len
        return replace(layer, chunk=None) if inside else layer


def load_model(config: EngineConfig) -> LoadedModel:
    """Raises ``UnsupportedModelError`` (a ``ValueError``) with what to change."""
    folder = open_folder(config.model)
    if not folder.is_dir():
        raise UnsupportedModelError(
            f"{config.model} is not a folder; MODEL must be one with config.json and weights"
        )
    started = time.perf_counter()
    device = resolve_device(config.device)
    raw = overridden(read_config(folder), config.hf_overrides)
    pooling = read_pooling(folder, raw, config.runner, config.convert, config.pooler_config)
    if pooling is not None:
        if config.enable_lora:
            raise UnsupportedModelError("--enable-lora is for models that generate text; leave it out")
        raw = raw | {"architectures": causal_architectures(raw.get("architectures"))}
    named = raw.get("dtype") or raw.get("torch_dtype")
    if named in (None, "auto") and isinstance(folder, Path):
        raw = raw | {"dtype": stored_dtype(folder)}
    native = config.model_impl == "native" or (config.model_impl == "auto" and is_native(raw))
    model = (_load_native if native else _load_transformers)(folder, raw, config, device, pooling)
    ends = [id_ for id_ in _tokenizers_end(folder) if id_ < model.config.vocab_size]
    model = replace(model, eos_token_ids=tuple(dict.fromkeys((*model.eos_token_ids, *ends))))
    if device.type == "cpu" and model.dtype == torch.float16:
        logger.warning("float16 is slow on most CPUs; --dtype bfloat16 or float32 is several times faster")
    logger.info(
        "loaded %s (%s%s) as %s on %s in %.1f s, attention backend %s",
        folder,
        model.config.architecture,
        "" if native else " by transformers",
        dtype_name(model.dtype),
        device,
        time.perf_counter() - started,
        model.backend,
    )
    return model


def _load_native(
    folder: Path | HeaderFolder,
    raw: dict[str, Any],
    config: EngineConfig,
    device: torch.device,
    pooling: PoolingSpec | None,
) -> LoadedModel:
    model_config = load_model_config(folder, raw, config.generation_config)
    dtype = resolve_dtype(config.dtype, model_config.checkpoint_dtype)
    max_model_len = resolve_max_model_len(config.max_model_len, model_config.max_position_embeddings, pooling)
    backend = resolve_backend(config.attention_backend, device, model_config, config.block_size, dtype)
    if config.batch_invariant and backend != "cpu":
        raise ValueError(
            f"--batch-invariant: the model would run on {backend} kernels, whose sums depend on the batch; "
            "the CPU kernels' do not (--device cpu --attention-backend cpu says why they cannot run)"
        )
    quantization = _asked(config.quantization, raw)
    stored: Scheme
    checkpoint = _open_checkpoint(folder, model_config.attention.head_dim)
    if isinstance(model_config.stored, Format):
        checkpoint = PackedCheckpoint(checkpoint, model_config.stored)
        if backend == "cpu" and model_config.experts is None and not config.enable_lora:
            stored = INT4_GROUPED if checkpoint.become_integers() == "int4" else INT8_GROUPED
        else:
            stored = PLAIN
        logger.info("the checkpoint's packed integers become %s", checkpoint.become)
    else:
        stored = model_config.stored
    if config.enable_lora and (quantization != "none" or stored != PLAIN):
        raise UnsupportedModelError("--enable-lora needs layers in floats, these are quantized")
    head = pooling is None or pooling.needs_head
    decoder = Decoder(
        untie_if_different(model_config, checkpoint) if head else model_config,
        dtype=dtype,
        device=device,
        ops=make_ops(backend, quantization, stored),
        head=head,
    )
    targets: Iterable[tuple[str, Tensor]] = decoder.targets()  # not kept: packing is to free them
    score_weight, pooler = None, None
    if pooling is not None and pooling.score is not None and not pooling.needs_head:
        score_weight = torch.empty(1, model_config.hidden_size, dtype=dtype, device=device)
        targets = chain(targets, [("score.weight", score_weight)])
    weights_bytes = load_weights(checkpoint, targets, ignore=decoder.ignored())
    weights_bytes -= decoder.finish()
    if pooling is not None:
        pooler = Pooler(pooling, score_weight=score_weight, logits=decoder.logits)
    adapters = None
    if config.enable_lora:
        adapters = Adapters(
            list(decoder.adaptable()),
            num_layers=model_config.num_layers,
            slots=config.max_loras,
            max_rank=config.max_lora_rank,
            dtype=dtype,
            device=device,
            ops=make_ops(backend),
        )
    return LoadedModel(
        decoder,
        device,
        dtype,
        max_model_len,
        weights_bytes,
        backend,
        model_config.eos_token_ids,
        pooling=pooling,
        pooler=pooler,
        adapters=adapters,
    )


def _asked(quantization: Quantization, raw: Mapping[str, Any]) -> Quantization:
    """What is to be done at load. Raises ``UnsupportedModelError`` if the checkpoint is not what is said."""
    if quantization not in QUANTIZED:
        return quantization
    method = (raw.get("quantization_config") or {}).get("quant_method", "not quantized")
    if method != quantization:
        raise UnsupportedModelError(
            f"--quantization {quantization}: the checkpoint is {method}; leave the flag out, or take int8 to "
            "have its layers made so"
        )
    return "none"


def _tokenizers_end(folder: Traversable) -> list[int]:
    """The end token that the tokenizer names: chat models end their turns with it, and often nobody else says
    so. Nothing where there is no tokenizer, which is the API process's trouble."""
    if isinstance(folder, HeaderFolder):  # known without the tokenizer, which takes its time to make
        end = folder.file.metadata.get("tokenizer.ggml.eos_token_id")
        return [] if end is None else [end]
    try:
        tokenizer = Tokenizer.from_folder(folder)
    except TokenizerError:
        return []
    named = tokenizer.special_tokens.get("eos_token")
    ids = tokenizer.encode(named, add_special_tokens=False) if named else []
    return ids if len(ids) == 1 else []


def _open_checkpoint(folder: Path | HeaderFolder, head_dim: int) -> Checkpoint:
    if isinstance(folder, HeaderFolder):
        return GGUFCheckpoint(folder.file, head_dim)
    return SafetensorsFolder(folder)


def _load_transformers(
    folder: Path | HeaderFolder,
    raw: dict[str, Any],
    config: EngineConfig,
    device: torch.device,
    pooling: PoolingSpec | None,
) -> LoadedModel:
    if isinstance(folder, HeaderFolder):
        raise UnsupportedModelError(
            f"{folder} is a GGUF file, which our own decoder reads; leave out --model-impl transformers"
        )
    if config.enable_lora:
        raise UnsupportedModelError(
            "--enable-lora needs a model of our own table, this one runs through transformers' code; merge "
            "the adapter into it"
        )
    if config.hf_overrides:
        raise UnsupportedModelError("--hf-overrides needs a model of our own table, not transformers' code")
    if pooling is not None and pooling.score is not None and not pooling.needs_head:
        raise UnsupportedModelError("transformers' code runs for text and embeddings, not for score heads")
    if config.batch_invariant:
        raise ValueError(
            "--batch-invariant holds for models of our own table, this one runs through transformers' code"
        )
    if config.quantization != "none":
        raise ValueError(
            f"--quantization {config.quantization} is for models of our own table, this one runs through "
            "transformers' code; leave it out"
        )
    # Imported late: it takes seconds, and what has a native description does without.
    from sheaf_runtime.hf.decoder import TransformersDecoder

    dtype = resolve_dtype(config.dtype, str(raw.get("dtype") or raw.get("torch_dtype") or "float32"))
    head = pooling is None or pooling.needs_head
    decoder = TransformersDecoder(
        folder,
        raw,
        dtype=dtype,
        device=device,
        head=head,
        generation_config=config.generation_config,
    )
    trained = decoder.config.max_position_embeddings
    max_model_len = resolve_max_model_len(config.max_model_len, trained, pooling)
    pooler = None if pooling is None else Pooler(pooling, score_weight=None, logits=decoder.logits)
    backend = resolve_backend(config.attention_backend, device, decoder.config, config.block_size, dtype)
    ends = decoder.config.eos_token_ids
    return LoadedModel(
        decoder,
        device,
        dtype,
        max_model_len,
        decoder.weights_bytes,
        backend,
        ends,
        pooling=pooling,
        pooler=pooler,
    )


def resolve_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda, but torch finds no CUDA device; use --device cpu")
    return torch.device(name)


def resolve_dtype(name: str, checkpoint: str) -> torch.dtype:
    """``auto`` is the checkpoint's own dtype, as in vLLM.

    On CPUs with AVX512-BF16 or AMX bfloat16 is about twice as fast as float32; without, it is slower.
    """
    name = checkpoint if name == "auto" else name
    if name not in DTYPES:
        raise UnsupportedModelError(
            f"the checkpoint's dtype is {name}; choose one with --dtype ({', '.join(DTYPES)})"
        )
    return DTYPES[name]


def resolve_max_model_len(asked: int | None, trained: int, pooling: PoolingSpec | None = None) -> int:
    """Without the flag a model that pools takes what its folder says it was made for."""
    if asked is None:
        return trained if pooling is None else min(trained, pooling.max_length or trained)
    if not 2 <= asked <= trained:  # a token of prompt and one of output
        raise ValueError(f"--max-model-len must be between 2 and the model's own {trained}, got {asked}")
    return asked


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
