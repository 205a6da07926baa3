"""The cache folder: built once, never half."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from localcluster.cache import build_once, cache_root


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SHEAF_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_root() == tmp_path / "home/.cache/sheaf"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg/sheaf"
    monkeypatch.setenv("SHEAF_CACHE", str(tmp_path / "explicit"))
    assert cache_root() == tmp_path / "explicit"
    assert not cache_root().exists()  # asking makes nothing


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    target = tmp_path / "cache" / "thing"
    with pytest.raises(KeyboardInterrupt):
        build_once(target, interrupted)
    assert [p.name for p in target.parent.iterdir()] == ["thing.lock"]
    # What a killed build left behind goes with the next one.
    leftover = target.parent / ".thing.abc"
    leftover.mkdir()
    build_once(target, lambda folder: (folder / "whole").touch())
    assert sorted(p.name for p in target.parent.iterdir()) == ["thing", "thing.lock"]
    assert [p.name for p in target.iterdir()] == ["whole"]


def test_it_is_built_once_however_many_ask(tmp_path: Path) -> None:
    target = tmp_path / "thing"
    builds: list[int] = []
    barrier = threading.Barrier(4)

    def ask() -> None:
        barrier.wait()
        build_once(target, lambda folder: builds.append(1))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == [1]
