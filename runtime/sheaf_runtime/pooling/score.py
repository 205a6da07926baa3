"""Which score a model gives to a pair of texts, told by its folder."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import Any

from sheaf_runtime.pooling.spec import Activation, PoolingError, ScoreHead
from sheaf_runtime.text.tokenizer import Tokenizer, read_json

ACTIVATIONS: Mapping[str, Activation] = {"Sigmoid": "sigmoid", "Identity": "identity"}


def score_head(folder: Traversable, raw: Mapping[str, Any], logit_score: Traversable | None) -> ScoreHead:
    """``logit_score`` is the folder of sentence-transformers' module, if any. Raises ``PoolingError``."""
    activation = _activation(folder, raw)
    if logit_score is not None:
        config = read_json(logit_score / "config.json")
        true_id, false_id = config.get("true_token_id"), config.get("false_token_id")
        if type(true_id) is not int or not (false_id is None or type(false_id) is int):
            raise PoolingError(f"{logit_score.name}/config.json: true_token_id must be a token id")
        return ScoreHead(true_id, false_id, activation)
    if (tokens := raw.get("classifier_from_token")) is not None:
        return _from_tokens(folder, raw, tokens, activation)
    labels = raw.get("num_labels") or len(raw.get("id2label") or "ab")  # two is transformers' default
    if labels != 1:
        raise PoolingError(
            f"the model has {labels} labels; only models with one, which score a pair of texts, are supported"
        )
    return ScoreHead(activation=activation)


def _from_tokens(
    folder: Traversable, raw: Mapping[str, Any], tokens: Any, activation: Activation
) -> ScoreHead:
    """vLLM's ``classifier_from_token``: [false, true] or, without post-processing, [true]."""
    named = isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)
    if not named or not 1 <= len(tokens) <= 2:
        raise PoolingError('classifier_from_token must be a list of one or two tokens: ["no", "yes"]')
    tokenizer = Tokenizer.from_folder(folder)
    ids = [tokenizer.encode(token, add_special_tokens=False) for token in tokens]
    for token, found in zip(tokens, ids, strict=True):
        if len(found) != 1:
            raise PoolingError(f"classifier_from_token: {token!r} is {len(found)} tokens, not one")
    return ScoreHead(ids[-1][0], ids[0][0] if len(ids) == 2 else None, activation)


def _activation(folder: Traversable, raw: Mapping[str, Any]) -> Activation:
    """sentence-transformers' ``activation_fn``, in each of the places where it has been."""
    about = read_json(folder / "config_sentence_transformers.json").get("activation_fn")
    inside = raw.get("sentence_transformers")
    named = about or (inside.get("activation_fn") if isinstance(inside, dict) else None)
    named = named or raw.get("sbert_ce_default_activation_function") or "Sigmoid"
    kind = str(named).rsplit(".", 1)[-1]
    if kind not in ACTIVATIONS:
        raise PoolingError(f"activation_fn {named} is not supported; supported are Sigmoid and Identity")
    return ACTIVATIONS[kind]
