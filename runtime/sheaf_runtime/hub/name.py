"""What MODEL is, if there is nothing of that path here."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from sheaf_runtime.hub.errors import HubError

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"  # the hub's rule, less its dots and dashes in a row
_NAME = re.compile(rf"({_WORD}/{_WORD})(?::([A-Za-z0-9._/-]+))?")
_URL = re.compile(r"(?:hf://|https?://[^/]+/)(.+)")


class HubName(msgspec.Struct, frozen=True):
    """``repo`` is ``org/model``; ``gguf`` says which of its GGUF files, as in ``org/model:Q4_K_M``."""

    repo: str
    gguf: str | None = None


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to download. ``revision`` is a branch, a tag or a commit; None is the hub's default. Without
    ``token`` the one that the hub's library finds is taken (HF_TOKEN, or that of ``hf auth login``)."""

    model: HubName
    revision: str | None = None
    token: str | None = None


def hub_name(model: str) -> HubName | None:
    """None for a path: one that exists wins over a model of the hub, and what cannot be a name is one.

    Raises ``HubError`` for what is nearly a name.
    """
    if Path(model).exists():
        return None
    if url := _URL.fullmatch(model):
        raise HubError(f"{model} is an address; write the model's name alone, as {_shortened(url[1])}")
    match = _NAME.fullmatch(model)
    if match is None or "--" in match[1] or ".." in match[1]:
        if "@" in model and _NAME.fullmatch(model.partition("@")[0]):
            name, _, revision = model.partition("@")
            raise HubError(f"{model}: write {name} --revision {revision}")
        return None
    return HubName(match[1], match[2])


def _shortened(path: str) -> str:
    return "/".join(path.strip("/").split("/")[:2])
