from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_llama(**overrides)``: the folder of a random tiny Llama; equal overrides share one folder."""
    made: dict[str, Path] = {}

    def make(**overrides: Any) -> Path:
        from tiny_models import write_tiny_llama

        key = json.dumps(overrides, sort_keys=True, default=str)
        if key not in made:
            made[key] = write_tiny_llama(tmp_path_factory.mktemp("tiny-llama"), **overrides)
        return made[key]

    return make


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the real demo model, fetched once into the cache."""
    sys.path.insert(0, str(REPOSITORY / "e2e"))
    try:
        from sheaf_e2e.demo_model import demo_model
    finally:
        sys.path.pop(0)
    return demo_model()
