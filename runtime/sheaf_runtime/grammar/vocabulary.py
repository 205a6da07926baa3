"""A model's vocabulary as the grammar compiler needs it: the bytes that each id adds to the text."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sheaf_runtime.grammar.errors import GrammarError
from sheaf_runtime.grammar.native import bindings
from sheaf_runtime.protocol.grammar import Grammar
from sheaf_runtime.text.tokenizer import Tokenizer

RAW = 0  # xgrammar's kind of a vocabulary that is given as bytes
SAMPLE = 'Sample {"a": [1, -2.5e3, true], "b": "x y"}'


class Vocabulary:
    """Ids beyond the tokenizer's (a padded vocabulary) and special tokens add nothing to the text: a grammar
    never allows them, but for the end tokens and for special tokens that it names."""

    def __init__(self, tokenizer: Tokenizer, size: int, eos_token_ids: tuple[int, ...]) -> None:
        self.size = size
        self.end_ids = eos_token_ids
        self._texts = [
            tokenizer.token_bytes(id_) if id_ < tokenizer.vocab_size else b"" for id_ in range(size)
        ]
        self._specials = {id_: self._texts[id_] for id_ in tokenizer.special_ids if id_ < size}
        self._check(tokenizer)

    def _check(self, tokenizer: Tokenizer) -> None:
        """Raises ``GrammarError`` where ids joined are not the text, as with word pieces."""
        ids = tokenizer.encode(SAMPLE, add_special_tokens=False)
        joined = b"".join(self._texts[id_] for id_ in ids if id_ < self.size)
        if joined.removeprefix(b" ") != SAMPLE.encode():
            raise GrammarError(
                "structured output is not available: this tokenizer's tokens are no plain text"
            )
        if not self.end_ids:
            raise GrammarError("structured output is not available: this model has no end token")

    def special(self, id_: int) -> bool:
        return id_ in self._specials

    def compiler(self, grammar: Grammar) -> Any:
        """xgrammar's compiler, with the special tokens whose text or id the grammar's tags have."""
        named_in = grammar.before + (grammar.text if grammar.kind == "structural_tag" else "")
        names = frozenset(id_ for id_, text in self._specials.items() if text and text.decode() in named_in)
        marks = frozenset(filter(self.special, grammar.marks))
        return self._compiler(names - marks - set(self.end_ids), marks)

    @lru_cache(maxsize=4)  # noqa: B019  there is one vocabulary, and it lives as long as the process
    def _compiler(self, names: frozenset[int], marks: frozenset[int]) -> Any:
        texts = [
            b"" if id_ in self._specials and id_ not in names else t for id_, t in enumerate(self._texts)
        ]
        for id_ in marks:  # bytes that are no text: only its id stands for it
            texts[id_] = b"\xff%d" % id_
        core = bindings()
        info = core.TokenizerInfo(texts, RAW, self.size, list(self.end_ids), False)
        return core.GrammarCompiler(info, 1, False, -1)
