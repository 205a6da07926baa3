"""Texts that a grammar allows, drawn by walking through its masks byte by byte."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from sheaf_runtime.grammar.native import bindings
from sheaf_runtime.grammar.recipe import recipe_of
from sheaf_runtime.protocol.grammar import Grammar

END = 256
CLOSING = b'"}],'


def compiler() -> Any:
    core = bindings()
    info = core.TokenizerInfo([*(bytes([b]) for b in range(256)), b""], 0, 257, [END], False)
    return core.GrammarCompiler(info, 1, False, -1)


COMPILER = compiler()


def compiled(kind: Any, text: str, before: str = "") -> Any:
    return recipe_of(Grammar(kind=kind, text=text, before=before)).compile(COMPILER)


def fits(grammar: Any, text: str) -> bool:
    matcher = bindings().GrammarMatcher(grammar, None, False, -1, None)
    return all(matcher.accept_token(b, False) for b in text.encode()) and matcher.accept_token(END, False)


def walk(grammar: Any, rng: random.Random, most: int = 300) -> str | None:
    """A text that fits, or None if it did not come to an end, or its bytes are no characters."""
    matcher = bindings().GrammarMatcher(grammar, None, False, -1, None)
    mask, out = np.zeros((1, 9), np.int32), bytearray()
    for _ in range(most):
        matcher.fill_next_token_bitmask(mask, 0, False)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8)[0], bitorder="little")[: END + 1]).tolist()
        assert allowed, f"nothing can follow {bytes(out)!r}"
        closing = [b for b in allowed if b in [*CLOSING]]
        token = rng.choice(closing if closing and rng.random() < 0.35 else allowed)
        if END in allowed and rng.random() < 0.6:
            token = END
        if token == END:
            try:
                return out.decode()
            except UnicodeDecodeError:
                return None
        assert matcher.accept_token(token, False)
        out.append(token)
    return None


def wander(grammar: Any, rng: random.Random, pieces: Sequence[str], most: int = 400) -> str | None:
    """As ``walk``, in ASCII where the grammar leaves a choice, through free text too: it tries one of
    ``pieces`` now and then, and keeps what of it the grammar allows."""
    matcher = bindings().GrammarMatcher(grammar, None, False, -1, None)
    mask, out, piece = np.zeros((1, 9), np.int32), bytearray(), b""
    while len(out) < most:
        matcher.fill_next_token_bitmask(mask, 0, False)
        bits = np.unpackbits(mask.view(np.uint8)[0], bitorder="little")
        allowed = [b for b in range(128) if bits[b]] or [b for b in range(128, 256) if bits[b]]
        assert allowed or bits[END], f"nothing can follow {bytes(out)!r}"
        if bits[END] and (not allowed or rng.random() < 0.15):
            return out.decode()
        if not piece and rng.random() < 0.5:
            piece = rng.choice(pieces).encode()
        if piece and piece[0] in allowed:
            token, piece = piece[0], piece[1:]
        else:
            closing = [b for b in allowed if b in [*CLOSING]]
            token, piece = rng.choice(closing if closing and rng.random() < 0.35 else allowed), b""
        assert matcher.accept_token(token, False)
        out.append(token)
    return None
