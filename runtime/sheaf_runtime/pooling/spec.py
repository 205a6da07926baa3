"""How a model's hidden states become vectors, as its folder and the flags say together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Mode = Literal["last", "mean"]
Activation = Literal["sigmoid", "identity"]


class PoolingError(ValueError):
    """The folder or a flag asks for pooling that is not there; the message says what to change."""


@dataclass(frozen=True)
class ScoreHead:
    """One number from a hidden state: by the checkpoint's matrix ``score``, or, with ``true_id``, the logit
    of that token, less the logit of ``false_id`` where there is one."""

    true_id: int | None = None
    false_id: int | None = None
    activation: Activation = "sigmoid"


@dataclass(frozen=True)
class PoolingSpec:
    """A model that embeds, or, with ``score``, one that scores pairs of texts.

    Attributes:
        mode: whose hidden state is taken: the last token's, or the mean of all.
        normalize: embeddings get the length one.
        matryoshka: the lengths that an embedding may be cut to; True: any, False: none.
        dimensions: the length it is cut to where a request says nothing.
        max_length: most tokens of an input, where the folder says less than the model could take.
        prompts: texts that go before an input, by name.
        default_prompt: the one of an input that names none.
        lower: inputs are lower-cased.
        qwen3_template: pairs are written as Qwen3's rerankers were trained, where no template says otherwise.
    """

    score: ScoreHead | None = None
    mode: Mode = "last"
    normalize: bool = True
    matryoshka: bool | tuple[int, ...] = False
    dimensions: int | None = None
    max_length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    lower: bool = False
    qwen3_template: bool = False

    @property
    def needs_head(self) -> bool:
        """Whether the projection to the vocabulary takes part."""
        return self.score is not None and self.score.true_id is not None
