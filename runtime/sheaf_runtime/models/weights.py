"""Fill a model's preallocated parameters from the safetensors files of a folder.

Files are memory-mapped and each tensor is copied, and converted where need be, right into its place.
Nothing is ever unpickled and no code of the folder is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sheaf_runtime.models.errors import UnsupportedModelError

INDEX = "model.safetensors.index.json"
# Checkpoints may carry these; they follow from config.json.
DERIVED = ("rotary_emb.inv_freq",)


def load_weights(folder: Path, targets: Iterable[tuple[str, Tensor]], *, ignore: Iterable[str] = ()) -> int:
    """Copy every tensor into its target; returns the bytes filled.

    ``ignore`` names tensors that may be in the files without a target (the ``lm_head`` of a tied model).

    Raises:
        UnsupportedModelError: a file or tensor is missing, unknown, damaged or of the wrong shape.
    """
    wanted = dict(targets)
    total = sum(t.numel() * t.element_size() for t in wanted.values())
    ignored = set(ignore)
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt", device="cpu") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a dict
                    if name in ignored or name.endswith(DERIVED):
                        continue
                    target = wanted.pop(name, None)
                    if target is None:
                        raise UnsupportedModelError(
                            f"{path.name} holds {name}, which this architecture has no place for "
                            "(or a second time)"
                        )
                    _copy(name, shard.get_tensor(name), target)
        except SafetensorError as error:
            raise UnsupportedModelError(f"{path} is damaged or incomplete: {error}") from error
    if wanted:
        names = sorted(wanted)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UnsupportedModelError(f"{folder} lacks the tensors {', '.join(names[:3])}{more}")
    return total


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files, in order; those of the index where there is one.

    Raises:
        UnsupportedModelError: there are none, or the index names one that is missing.
    """
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UnsupportedModelError(f"cannot read {index}: {error}") from error
        if outside := [name for name in names if Path(name).name != name]:
            raise UnsupportedModelError(f"{index} names a file outside the folder: {outside[0]}")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UnsupportedModelError(
                f"{folder} lacks {len(missing)} of {len(names)} weight files: {', '.join(missing[:3])}; "
                "download the model again"
            )
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    unsafe = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if unsafe:
        raise UnsupportedModelError(
            f"{folder} has pickled weights only ({unsafe[0]}), which are never loaded because they can run "
            "code; convert them to safetensors with transformers: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    raise UnsupportedModelError(f"{folder} has no *.safetensors files")


def _copy(name: str, source: Tensor, target: Tensor) -> None:
    if source.shape != target.shape:
        raise UnsupportedModelError(
            f"tensor {name} is {list(source.shape)} in the checkpoint, "
            f"but config.json makes it {list(target.shape)}"
        )
    if not source.is_floating_point():
        raise UnsupportedModelError(
            f"tensor {name} has dtype {source.dtype}: quantized weights are not supported"
        )
    target.copy_(source)
