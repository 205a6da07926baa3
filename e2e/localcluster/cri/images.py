"""What an image name stands for: a command on this machine. Pure data; the file is YAML or JSON.

"sheaf/runtime:*":
  entrypoint: [/srv/sheaf/.venv/bin/sheaf, serve]
  env: {PYTHONUNBUFFERED: "1"}
  uid: 65532                      # default 65532: manifests say runAsNonRoot and need a number
  workingDir: /                   # default /
  paths: [/srv/sheaf]             # host paths the image holds, needed only where they lie in a folder that
                                  # containers get afresh (/tmp, /var/tmp, /run, /mnt)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

DEFAULT_UID = 65532
DEFAULT_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp"}


@dataclass(frozen=True)
class Image:
    """One image. `name` is how the pod spelt it, with a tag (the kubelet adds `:latest`), and also its id."""

    name: str
    entrypoint: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    uid: int = DEFAULT_UID
    working_dir: str = "/"
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageTable:
    """Patterns (`sheaf/runtime:*`) and what they stand for; the first match wins."""

    patterns: Mapping[str, Image]

    def find(self, name: str) -> Image | None:
        """The image of this name, or None where a registry would say "not found"."""
        for pattern, image in self.patterns.items():
            if fnmatchcase(name.removeprefix("docker.io/"), pattern):
                return replace(image, name=name)
        return None


def read_images(path: Path) -> ImageTable:
    """Raise ValueError with the place and the remedy if the file is not as described above."""
    return parse_images(yaml.safe_load(path.read_text()), str(path))


def parse_images(document: Any, where: str = "images") -> ImageTable:
    if not isinstance(document, dict):
        raise ValueError(f"{where}: must map image patterns to entries, is {type(document).__name__}")
    return ImageTable(
        {str(p): _parse_image(str(p), entry, f"{where}: {p!r}") for p, entry in document.items()}
    )


def _parse_image(pattern: str, entry: Any, where: str) -> Image:
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: must be a mapping, is {type(entry).__name__}")
    known = {"entrypoint", "env", "uid", "workingDir", "paths"}
    if unknown := set(entry) - known:
        raise ValueError(f"{where}: unknown {sorted(unknown)}; choose from {sorted(known)}")
    uid = entry.get("uid", DEFAULT_UID)
    if not isinstance(uid, int) or isinstance(uid, bool) or uid < 0:
        raise ValueError(f"{where}: uid must be a number from 0, is {uid!r}")
    env = entry.get("env", {})
    if not isinstance(env, dict):
        raise ValueError(f"{where}: env must map names to values, is {env!r}")
    return Image(
        name=pattern,
        entrypoint=_strings(entry, "entrypoint", where),
        env={str(name): str(value) for name, value in env.items()},
        uid=uid,
        working_dir=str(entry.get("workingDir", "/")),
        paths=_strings(entry, "paths", where),
    )


def _strings(entry: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = entry.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{where}: {key} must be a list of strings, is {value!r}")
    return tuple(value)
