"""A model folder's tokenizer, from ``tokenizer.json`` alone: no transformers, and loaded in milliseconds."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib.resources.abc import Traversable
from typing import Any

from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from sheaf_runtime.text.added_tokens import add_tokens

# A text is encoded in the thread that asks, at its priority, and not in the library's own.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
FEW = 4096  # ids whose decoding nobody notices

NAMED_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: printable ones for themselves, the
    others for characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_of()
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class TokenizerError(ValueError):
    """The model folder has no tokenizer that can be read; the message says what is missing."""


class Tokenizer:
    """Encodes and decodes; thread-safe, because the Rust tokenizer is never changed after construction.

    Attributes:
        special_tokens: the named special tokens (``bos_token``, ...) as text, for the chat template.
        special_ids: ids that ``skip_special_tokens`` drops.
        byte_ids: ids of byte-fallback tokens (``<0xE2>``), whose run is decoded as a whole; empty for
            byte-level vocabularies, where every token is plain bytes.
    """

    def __init__(self, rust: RustTokenizer, special_tokens: dict[str, Any] | None = None) -> None:
        rust.no_truncation()
        rust.no_padding()
        self._rust = rust
        self.special_tokens: dict[str, Any] = special_tokens or {}
        added = rust.get_added_tokens_decoder()
        self.special_ids = frozenset(id_ for id_, token in added.items() if token.special)
        self._added = frozenset(added)
        described = json.loads(rust.to_str())
        self._decoder = described.get("decoder")
        blanks = json.dumps(
            [described.get(part) for part in ("decoder", "normalizer", "pre_tokenizer")], ensure_ascii=False
        )
        self._is_byte_level = '"ByteLevel"' in json.dumps(self._decoder)
        self._has_metaspace = "\u2581" in blanks or '"Metaspace"' in blanks

    @classmethod
    def from_folder(cls, folder: Traversable) -> Tokenizer:
        """Raises ``TokenizerError`` when ``tokenizer.json`` is missing or unreadable."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"{path} does not exist; a model folder needs a fast tokenizer: convert it with "
                "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
        try:
            rust = RustTokenizer.from_buffer(path.read_bytes())
        except Exception as error:  # the Rust library raises plain Exception
            raise TokenizerError(f"{path} cannot be read: {error}") from error
        config = read_json(folder / "special_tokens_map.json")
        config |= read_json(folder / "tokenizer_config.json")
        named = _named_special_tokens(config)
        legacy = read_json(folder / "added_tokens.json")
        try:
            add_tokens(rust, config, legacy, named)
        except ValueError as error:
            raise TokenizerError(f"{folder}: {error}") from error
        return cls(rust, named)

    @property
    def vocab_size(self) -> int:
        """Including added tokens; the model's own vocabulary may be padded beyond it."""
        return self._rust.get_vocab_size(with_added_tokens=True)

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        if not _has_byte_fallback(self._decoder):
            return frozenset()
        return frozenset(id_ for token, id_ in self._rust.get_vocab().items() if _BYTE_TOKEN.fullmatch(token))

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: a text longer than this times N has more than N tokens."""
        return max(map(len, self._rust.get_vocab(with_added_tokens=True)), default=1)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(self.encoding(text, add_special_tokens=add_special_tokens).ids)

    def encoding(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """Other threads run meanwhile: of the library's ways to encode only those for batches release the
        interpreter's lock. This one keeps no offsets besides, which is the quicker half."""
        encodings = self._rust.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encodings[0]

    def encoding_of_pair(self, first: str, second: str) -> Encoding:
        """Two texts as one, with whatever the tokenizer puts around and between them."""
        return self._rust.encode_batch_fast([(first, second)])[0]

    @cached_property
    def num_appended(self) -> int:
        """How many special tokens the tokenizer puts behind a text."""
        bare, whole = self.encode("a", add_special_tokens=False), self.encode("a")
        ends = range(len(whole) - len(bare) + 1)
        return next((n for n in ends if whole[len(whole) - n - len(bare) : len(whole) - n] == bare), 0)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Ids outside the vocabulary decode to nothing."""
        if len(ids) <= FEW:
            return self._rust.decode(ids, skip_special_tokens=skip_special_tokens)
        # Only the way for batches releases the interpreter's lock.
        return self._rust.decode_batch([ids], skip_special_tokens=skip_special_tokens)[0]

    def token_bytes(self, id_: int) -> bytes:
        """What one token adds to the text as UTF-8, be it half a character. Empty for an unknown id."""
        token = self._rust.id_to_token(id_)
        if token is None:
            return b""
        if id_ not in self._added:
            if id_ in self.byte_ids:
                return bytes([int(token[3:5], 16)])
            if self._is_byte_level:
                return bytes(_BYTE_OF[character] for character in token if character in _BYTE_OF)
            if self._has_metaspace:
                token = token.replace("\u2581", " ")
        return token.encode()

    @cached_property
    def spaces_between_specials(self) -> bool:
        """Whether text that shows special tokens has blanks between them."""
        some = sorted(self.special_ids)[:1] * 2
        return len(some) == 2 and " " in self.decode(some, skip_special_tokens=False).strip()

    def special_id(self, text: str) -> int | None:
        """The special token that is exactly this text."""
        id_ = self._rust.token_to_id(text)
        return id_ if id_ in self.special_ids else None

    def special_ids_of(self, texts: Iterable[str]) -> frozenset[int]:
        """Ids of those texts that are special tokens."""
        return self.special_ids & {self._rust.token_to_id(text) for text in texts}

    def token(self, id_: int) -> str | None:
        """The vocabulary's own spelling of one id."""
        return self._rust.id_to_token(id_)


def read_text(path: Traversable) -> str:
    """A text file in UTF-8, with or without a byte order mark. Raises ``TokenizerError`` or ``OSError``."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def read_json(path: Traversable) -> dict[str, Any]:
    """A JSON object, or ``{}`` where there is no such file. Raises ``TokenizerError`` on broken JSON."""
    try:
        value = json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        if isinstance(error, TokenizerError):
            raise
        raise TokenizerError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} must hold a JSON object")
    return value


def _named_special_tokens(merged: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens that ``tokenizer_config.json`` names (older folders: ``special_tokens_map.json``)."""
    named: dict[str, Any] = {}
    for name in NAMED_SPECIAL_TOKENS:
        token = merged.get(name)
        if isinstance(token, dict):  # an AddedToken, written out
            token = token.get("content")
        if isinstance(token, str):
            named[name] = token
    return named


def _has_byte_fallback(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    if decoder.get("type") == "ByteFallback":
        return True
    return any(_has_byte_fallback(part) for part in decoder.get("decoders", ()))
