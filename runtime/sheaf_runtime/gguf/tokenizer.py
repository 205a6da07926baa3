"""A GGUF file's vocabulary as the text of ``tokenizer.json``, and as ``tokenizer_config.json``."""

from __future__ import annotations

from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from sheaf_runtime.gguf.config import CONTROL, USER_DEFINED
from sheaf_runtime.gguf.errors import GGUFError
from sheaf_runtime.gguf.reader import GGUFFile

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# How text is cut before BPE, by the file's `tokenizer.ggml.pre`: digits apart first, a pattern of the model's
# own (None: GPT-2's), whether text is normalized, and whether whole words of the vocabulary need no merges.
_PRE: dict[str, tuple[bool, str | None, bool, bool]] = {
    "gpt-2": (False, None, False, False),
    "smollm": (True, None, False, False),
    "starcoder": (True, None, False, False),
    "refact": (True, None, False, False),
    "llama-bpe": (False, _LLAMA3, False, True),
    "qwen2": (False, _QWEN2, True, False),
    "deepseek-r1-qwen": (False, _QWEN2, True, False),
}
SPACE = "▁"


def tokenizer_json(file: GGUFFile) -> str:
    """Raises ``GGUFError``."""
    metadata, tokens = _vocabulary(file)
    kind = metadata.get("model")
    if kind == "gpt2":
        tokenizer = _byte_level(file, metadata, tokens)
    elif kind == "llama":
        tokenizer = _sentencepiece(metadata, tokens)
    else:
        raise GGUFError(f"{file.path} has a {kind!r} tokenizer; gpt2 and llama can be read")
    types = metadata.get("token_type", [])
    tokenizer.add_special_tokens(
        [AddedToken(tokens[i], special=True, normalized=False) for i, t in enumerate(types) if t == CONTROL]
    )
    tokenizer.add_tokens(
        [AddedToken(tokens[i], normalized=False) for i, t in enumerate(types) if t == USER_DEFINED]
    )
    _add_ends(tokenizer, metadata, tokens, sentencepiece=kind == "llama")
    return tokenizer.to_str()


def tokenizer_config(file: GGUFFile) -> dict[str, Any]:
    """Raises ``GGUFError``."""
    metadata, tokens = _vocabulary(file)
    named = {
        f"{name}_token": tokens[metadata[key]]
        for name, key in (
            ("bos", "bos_token_id"),
            ("eos", "eos_token_id"),
            ("unk", "unknown_token_id"),
            ("pad", "padding_token_id"),
        )
        if key in metadata
    }
    config = {**named, "model_max_length": file.metadata.get("llama.context_length", 1 << 30)}
    if (template := file.metadata.get("tokenizer.chat_template")) is not None:
        config["chat_template"] = template
    return config


def _vocabulary(file: GGUFFile) -> tuple[dict[str, Any], list[str]]:
    """The metadata of the tokenizer, and the tokens by id."""
    metadata = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in file.metadata.items()
        if key.startswith("tokenizer.ggml.")
    }
    tokens: list[str] = metadata.get("tokens", [])
    if not tokens:
        raise GGUFError(f"{file.path} has no vocabulary")
    return metadata, tokens


def _byte_level(file: GGUFFile, metadata: dict[str, Any], tokens: list[str]) -> Tokenizer:
    pre = metadata.get("pre", "")
    if pre not in _PRE:
        raise GGUFError(
            f"{file.path} cuts text as {pre!r} does, which is not known; those that are: {', '.join(_PRE)}"
        )
    digits, pattern, normalized, ignore_merges = _PRE[pre]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("merges", [])]
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=ignore_merges)
    )
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if normalized:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentencepiece(metadata: dict[str, Any], tokens: list[str]) -> Tokenizer:
    """Byte-pair encoding over whole texts, spaces written as a character, unknown characters as bytes."""
    vocab = {token: i for i, token in enumerate(tokens)}
    unknown = metadata.get("unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab,
            _merges(vocab, metadata.get("scores", [])),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefixed = metadata.get("add_space_prefix", True)
    prefix: list[Any] = [normalizers.Prepend(SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        steps.append(decoders.Strip(content=" ", left=1, right=0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose whole scores best; each way to cut a token in two is such a pair."""
    pairs = [
        (-scores[id_], vocab[token[:cut]], vocab[token[cut:]], token[:cut], token[cut:])
        for token, id_ in vocab.items()
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    return [(left, right) for *_, left, right in sorted(pairs)]


def _add_ends(
    tokenizer: Tokenizer, metadata: dict[str, Any], tokens: list[str], *, sentencepiece: bool
) -> None:
    """The tokens that are put around every text."""
    first = metadata.get("bos_token_id") if metadata.get("add_bos_token", sentencepiece) else None
    last = metadata.get("eos_token_id") if metadata.get("add_eos_token", False) else None
    around = [(tokens[id_], id_) for id_ in (first, last) if id_ is not None]
    if not around:
        return
    pieces = [*([tokens[first]] if first is not None else []), "$A"]
    pieces += [tokens[last]] if last is not None else []
    pairs: list[Any] = around
    tokenizer.post_processor = processors.TemplateProcessing(single=pieces, special_tokens=pairs)
