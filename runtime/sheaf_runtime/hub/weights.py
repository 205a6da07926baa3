"""Which of a model's files hold its weights: one rule for what is downloaded and what is loaded."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import PurePosixPath

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


class WeightsError(ValueError):
    """There are no weights that could be loaded; the message says why and what to do."""


class MissingShardsError(WeightsError):
    """The index names files that are not there."""

    def __init__(self, message: str, missing: list[str]) -> None:
        super().__init__(message)
        self.missing = missing


def weight_files(names: Collection[str], index: str | None, where: str) -> list[str]:
    """Those of the index, else ``model.safetensors`` alone, as transformers has it, else all that are neither
    hidden nor Mistral's second copy; in order. An index whose files are missing counts for nothing beside a
    ``model.safetensors``: it is left over from what that was made of.

    ``names`` are the files of ``where`` itself, not of folders in it; ``index`` is the text of ``INDEX``, if
    it is one of them. Raises ``WeightsError``.
    """
    if index is not None:
        try:
            return _indexed(names, index, where)
        except MissingShardsError:
            if SINGLE not in names:
                raise
    if SINGLE in names:
        return [SINGLE]
    found = [
        name
        for name in sorted(names)
        if name.endswith(".safetensors") and not name.startswith((".", "consolidated", "adapter_"))
    ]
    if found:
        return found
    if pickled := sorted(name for name in names if name.endswith(PICKLED)):
        raise WeightsError(
            f"{where} has pickled weights only ({pickled[0]}), which are never loaded because they can run "
            "code; convert them to safetensors with transformers: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    raise WeightsError(f"{where} has no *.safetensors files")


def _indexed(names: Collection[str], index: str, where: str) -> list[str]:
    try:
        listed = sorted(set(json.loads(index)["weight_map"].values()))
        outside = [name for name in listed if PurePosixPath(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"cannot read {where}/{INDEX}: {error}") from error
    if outside:
        raise WeightsError(f"{where}/{INDEX} names a file outside the folder: {outside[0]}")
    if missing := [name for name in listed if name not in names]:
        raise MissingShardsError(
            f"{where} lacks {len(missing)} of {len(listed)} weight files: {', '.join(missing[:3])}; "
            "download the model again",
            missing,
        )
    return listed
