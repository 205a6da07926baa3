"""Rotary position embedding: its variants as one table of frequencies, and its parameters in ``config.json``.

Every variant is the rotation of channel d with channel d + D/2 by the angle ``position * frequency[d]``.
Where a checkpoint pairs neighbouring channels, or rotates a part of them only, the channels of its query and
key projections are put in that order once, when they are loaded (``channel_order``), and channels that it
leaves alone have the frequency 0. Scores do not change when queries and keys are permuted alike, so nothing
that runs later knows of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sheaf_runtime.models.errors import UnsupportedModelError

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_REQUIRED: dict[RopeKind, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}


@dataclass(frozen=True)
class RopeConfig:
    """``rotary_dim`` channels of each head are rotated. ``attention_factor`` multiplies cosines and sines.

    The fields after it matter to some kinds only; ``original_max_position`` is the length before stretching.
    """

    rotary_dim: int
    theta: float = 10000.0
    kind: RopeKind = "default"
    attention_factor: float = 1.0
    factor: float = 1.0
    original_max_position: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @property
    def reach(self) -> int:
        """Tokens up to which a context is stretched, whatever ``max_position_embeddings`` says: Qwen has
        people add YaRN to a config that keeps its first length. 0 where the kind does not tell."""
        return int(self.factor * self.original_max_position) if self.kind == "yarn" else 0

    @property
    def switch(self) -> int | None:
        """Sequences longer than this have other frequencies; None: all have the same.

        ``dynamic`` stretches with the length beyond ``max_position_embeddings`` only, which is never served.
        """
        return self.original_max_position if self.kind == "longrope" else None


def parse_rope(given: Mapping[str, Any], *, head_dim: int, max_position: int) -> RopeConfig:
    """``given`` is ``rope_parameters`` (or ``rope_theta`` and ``rope_scaling`` merged)."""
    named = given.get("rope_type") or given.get("type") or "default"
    kind = next((known for known in ROPE_KINDS if known == named), None)
    if kind is None:
        raise UnsupportedModelError(
            f"unsupported rope type {named!r}; implemented are {', '.join(ROPE_KINDS)}"
        )
    if not (given.get("rope_type") or given.get("type")) and (given.get("factor") or 1.0) != 1.0:
        raise UnsupportedModelError(
            f"config.json stretches positions by the factor {given['factor']}, and no rope_type says how"
        )
    if given.get("llama_4_scaling_beta"):
        raise UnsupportedModelError(
            "llama_4_scaling_beta, which sharpens queries, is implemented for Ministral3ForCausalLM only"
        )
    if missing := [name for name in _REQUIRED.get(kind, ()) if given.get(name) is None]:
        raise UnsupportedModelError(f"rope type {kind} needs {', '.join(missing)} in config.json")
    rotary_dim = int(head_dim * (given.get("partial_rotary_factor") or 1.0))
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise UnsupportedModelError(
            f"{rotary_dim} of head_dim's {head_dim} channels would be rotated; it must be an even number: "
            "rotary embedding pairs channels"
        )
    original = int(given.get("original_max_position_embeddings") or max_position)
    factor = given.get("factor")
    if factor is None:
        factor = max_position / original if kind in ("yarn", "longrope") else 1.0
    config = RopeConfig(
        rotary_dim=rotary_dim,
        theta=float(given.get("rope_theta") or 10000.0),
        kind=kind,
        attention_factor=_attention_factor(kind, given, float(factor), original),
        factor=float(factor),
        original_max_position=original,
        low_freq_factor=float(given.get("low_freq_factor") or 1.0),
        high_freq_factor=float(given.get("high_freq_factor") or 4.0),
        beta_fast=float(given.get("beta_fast") or 32.0),
        beta_slow=float(given.get("beta_slow") or 1.0),
        truncate=bool(given.get("truncate", True)),
        short_factor=tuple(map(float, given.get("short_factor") or ())),
        long_factor=tuple(map(float, given.get("long_factor") or ())),
    )
    for name in ("short_factor", "long_factor"):
        factors = getattr(config, name)
        if kind == "longrope" and len(factors) != rotary_dim // 2:
            raise UnsupportedModelError(
                f"rope type longrope: {name} has {len(factors)} entries for {rotary_dim // 2} channel pairs"
            )
    return config


def _attention_factor(kind: RopeKind, given: Mapping[str, Any], factor: float, original: int) -> float:
    """Stretched positions blur attention; YaRN and LongRoPE sharpen it again, each by its own formula."""
    if kind not in ("yarn", "longrope"):
        return 1.0
    if (explicit := given.get("attention_factor")) is not None:
        return float(explicit)
    if factor <= 1.0:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        return mscale(float(given["mscale"])) / mscale(float(given["mscale_all_dim"]))
    return mscale(1.0)


def rope_frequencies(config: RopeConfig, *, long: bool = False) -> Tensor:
    """Radians per position of each rotated channel pair: [rotary_dim / 2]."""
    dim = config.rotary_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
    inv_freq = 1.0 / (config.theta**exponents)
    if config.kind == "linear":
        return inv_freq / config.factor
    if config.kind == "longrope":
        factors = config.long_factor if long else config.short_factor
        return 1.0 / (torch.tensor(factors) * config.theta**exponents)
    if config.kind == "llama3":
        # Long wavelengths are stretched by `factor`, short ones kept, those between interpolated.
        wavelength = 2 * math.pi / inv_freq
        turns = config.original_max_position / wavelength
        smooth = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
        smooth = smooth.clamp(0, 1)
        return (1 - smooth) * inv_freq / config.factor + smooth * inv_freq
    if config.kind == "yarn":
        # Pairs that turn often within the original length are kept, those that turn seldom stretched.
        low, high = (_yarn_pair(config, turns) for turns in (config.beta_fast, config.beta_slow))
        if config.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        pair = torch.arange(dim // 2, dtype=torch.float32)
        stretched = ((pair - low) / max(high - low, 0.001)).clamp(0, 1)
        return inv_freq / config.factor * stretched + inv_freq * (1 - stretched)
    return inv_freq


def _yarn_pair(config: RopeConfig, turns: float) -> float:
    """Which channel pair turns so many times within the original length."""
    wavelength = config.original_max_position / (turns * 2 * math.pi)
    return config.rotary_dim * math.log(wavelength) / (2 * math.log(config.theta))


class Rope:
    """Cosines and sines of a step's positions, computed anew: a table of all positions would take gigabytes
    for contexts of millions of tokens, and reading it not much less time.

    Where the frequencies ``switch`` with the length, long sequences have a row of their own.
    """

    def __init__(self, config: RopeConfig | None, head_dim: int, device: torch.device) -> None:
        """``config`` None: positions are not embedded, all angles are 0."""
        rows = [torch.zeros(0)] if config is None else [rope_frequencies(config)]
        if config is not None and config.switch is not None:
            rows.append(rope_frequencies(config, long=True))
        self._inv_freq_XH = torch.stack([_padded(inv_freq, head_dim // 2) for inv_freq in rows]).to(device)
        self._switch = None if config is None else config.switch
        self._scale_H: Tensor | None = None
        if config is not None and config.attention_factor != 1.0:  # only what is rotated is scaled
            scale = torch.full((len(rows[0]),), config.attention_factor)
            self._scale_H = _padded(scale, head_dim // 2, 1.0).to(device)

    def __call__(self, positions_T: Tensor, prompt_lens_T: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, [T, H] each in float32.

        A sequence's length, which decides about long frequencies, is its prompt's, and grows with what is
        generated: what was computed before is not computed again.
        """
        inv_freq = self._inv_freq_XH[0]
        if self._switch is not None:
            long_T = torch.maximum(positions_T + 1, prompt_lens_T) > self._switch
            inv_freq = self._inv_freq_XH[long_T.long()]
        angles_TH = positions_T.float()[:, None] * inv_freq
        cos_TH, sin_TH = angles_TH.cos(), angles_TH.sin()
        if self._scale_H is not None:
            cos_TH, sin_TH = cos_TH * self._scale_H, sin_TH * self._scale_H
        return cos_TH, sin_TH


def _padded(values: Tensor, length: int, fill: float = 0.0) -> Tensor:
    return torch.cat((values, torch.full((length - len(values),), fill)))


def channel_order(head_dim: int, rotary_dim: int, interleaved: bool) -> list[int] | None:
    """The checkpoint's channels in the order in which d is rotated with d + D/2; None: they are in it.

    ``interleaved``: the checkpoint pairs channels 2d and 2d + 1, otherwise d and d + rotary_dim / 2.
    """
    half = rotary_dim // 2
    first = list(range(0, rotary_dim, 2)) if interleaved else list(range(half))
    second = list(range(1, rotary_dim, 2)) if interleaved else list(range(half, rotary_dim))
    rest = list(range(rotary_dim, head_dim))
    middle = len(rest) // 2
    order = first + rest[:middle] + second + rest[middle:]
    return None if order == list(range(head_dim)) else order


def both_halves(cos_TH: Tensor, sin_TH: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin as ``rotate`` wants them, [T, 1, D] each: twice, the sine negative in the first half."""
    return torch.cat((cos_TH, cos_TH), -1).unsqueeze(1), torch.cat((-sin_TH, sin_TH), -1).unsqueeze(1)


def rotate(x_TND: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Rotate channel d with channel d + D/2 of every head, in float32."""
    x = x_TND.float()
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return (x * cos_T1D).addcmul_(swapped, sin_T1D).to(x_TND.dtype)
