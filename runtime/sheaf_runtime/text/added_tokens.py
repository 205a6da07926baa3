"""Tokens that a folder names beside ``tokenizer.json``, added to its tokenizer as transformers does.

People add tokens, and end tokens above all, by editing ``tokenizer_config.json``. Without them what a chat
template writes would fall into pieces that the model has never seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


def add_tokens(
    rust: RustTokenizer, config: Mapping[str, Any], legacy: Mapping[str, Any], named: Mapping[str, str]
) -> None:
    """``config`` is ``tokenizer_config.json``, ``legacy`` the ids of ``added_tokens.json``, which count where
    ``config`` lists none, and ``named`` are the special tokens' texts. What is there already stays as it is.

    Raises ``ValueError`` for a list that is none.
    """
    special = [*named.values(), *_more_special(config)]
    listed = config.get("added_tokens_decoder")
    if listed is None:
        listed = {index: {"content": text} for text, index in legacy.items()}
    if not isinstance(listed, dict):
        raise ValueError("added_tokens_decoder must be an object of ids and tokens")
    try:
        tokens = [_token(listed[index], special) for index in sorted(listed, key=int)]
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"added tokens cannot be read: {type(error).__name__}: {error}") from error
    tokens += [AddedToken(text, special=True) for text in special if text]
    there = {token.content for token in rust.get_added_tokens_decoder().values()}
    for token in tokens:
        if token.content not in there:
            rust.add_tokens([token])
            there.add(token.content)


def _token(written: Mapping[str, Any], special: list[str]) -> AddedToken:
    text = written["content"]
    is_special = bool(written.get("special")) or text in special
    flags = {name: bool(written[name]) for name in _FLAGS if name in written}
    return AddedToken(text, special=is_special, **({"normalized": not is_special} | flags))


def _more_special(config: Mapping[str, Any]) -> list[str]:
    """``additional_special_tokens``, in its forms and by its newer name."""
    found: list[str] = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        tokens = config.get(name) or []
        for token in tokens.values() if isinstance(tokens, dict) else tokens:
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                found.append(text)
    return found
