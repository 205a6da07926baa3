"""`PYTHONPATH=charts python -m dashboards`, or `make manifests`."""

from __future__ import annotations

import json
from pathlib import Path

from dashboards.fleet import fleet
from dashboards.runtime import runtime

FOLDER = Path(__file__).resolve().parents[1] / "sheaf" / "files" / "dashboards"


def files() -> dict[Path, str]:
    """Every dashboard's file with its text."""
    made = {"fleet": fleet(), "runtime": runtime()}
    return {FOLDER / f"{name}.json": json.dumps(content, indent=1) + "\n" for name, content in made.items()}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for path, text in files().items():
        path.write_text(text)
        print(path.relative_to(FOLDER.parents[3]))


if __name__ == "__main__":
    main()
