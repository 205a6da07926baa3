"""Which files of a repository are read. Pure: the listing in, names out."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from sheaf_runtime.hub.errors import HubError
from sheaf_runtime.hub.weights import INDEX, WeightsError, weight_files

# Beside the weights: the root's own, and what modules.json points to.
SMALL = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    INDEX,
)
_MODULE = re.compile(r"\d+_[A-Za-z]+/config\.json")
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_NO_MODEL = re.compile(r"(?i)mmproj|imatrix|mtp-only")
_SHOWN = 12


def is_small(name: str) -> bool:
    return name in SMALL or _MODULE.fullmatch(name) is not None


def chosen_gguf(repo: str, listing: Collection[str], wanted: str | None) -> str | None:
    """The GGUF file to serve, or None for a repository whose safetensors are. ``wanted`` is a file's name, or
    the quantization at its end.

    Raises ``HubError`` where there are none or several to choose from.
    """
    files = sorted(name for name in listing if name.endswith(".gguf") and not _NO_MODEL.search(name))
    if wanted is None and (not files or any(_is_weights(name) for name in listing)):
        return None
    if not files:
        raise HubError(f"{repo} has no GGUF files; write the name without :{wanted}")
    found = files if wanted is None else [name for name in files if _means(wanted, name)]
    if len(found) != 1:
        problem = "has" if wanted is None else f"has no {wanted}, but" if not found else "has"
        offered = found or files
        shown = ", ".join(offered[:_SHOWN]) + (", ..." if len(offered) > _SHOWN else "")
        raise HubError(
            f"{repo} {problem} {len(offered)} GGUF files: {shown}; name one of them, as {repo}:"
            f"{_tag(offered[0])}"
        )
    if _PART.search(found[0]):
        raise HubError(f"{found[0]} of {repo} is a part of a model; GGUF files in parts are not supported")
    return found[0]


def needed_files(repo: str, listing: Collection[str], index: str | None) -> Sequence[str]:
    """What a repository with safetensors is served from: everything small, and the weights that the loader
    takes, once. ``index`` is the text of its index of shards, if it has one.

    Raises ``HubError``, or ``MissingShardsError`` for an index that names more than there is.
    """
    if "config.json" not in listing:
        raise HubError(f"{repo} {_other_kind(listing)}")
    root = [name for name in listing if "/" not in name]
    try:
        weights = weight_files(root, index, repo)
    except WeightsError as error:
        if INDEX in listing:
            raise
        raise HubError(str(error)) from error
    if "tokenizer.json" not in listing:
        raise HubError(
            f"{repo} has no tokenizer.json; a model needs a fast tokenizer: convert it with transformers' "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return [*sorted(name for name in listing if is_small(name)), *weights]


def _other_kind(listing: Collection[str]) -> str:
    if "adapter_config.json" in listing:
        return "is an adapter (LoRA); serve the model that it is for, and name the folder with --lora-modules"
    if "model_index.json" in listing:
        return "is a pipeline of diffusers, no language model"
    if "params.json" in listing:
        return (
            "is in Mistral's own format only (params.json); name a copy in Hugging Face's, with config.json"
        )
    return "has no config.json: it is no model in Hugging Face's format"


def _is_weights(name: str) -> bool:
    return "/" not in name and name.endswith(".safetensors")


def _means(wanted: str, name: str) -> bool:
    stem = name.removesuffix(".gguf").lower()
    return (
        wanted.lower() in (name.lower(), stem)
        or re.search(
            rf"(?:^|[-._/]){re.escape(wanted.lower())}$", _PART.sub("", name.lower()).removesuffix(".gguf")
        )
        is not None
    )


def _tag(name: str) -> str:
    """The quantization at a file's end, else all of its name."""
    match = re.search(
        r"[-._]((?:UD-)?(?:I?Q\d\w*|BF16|F16|F32))$", _PART.sub(".gguf", name).removesuffix(".gguf")
    )
    return match[1] if match else name
