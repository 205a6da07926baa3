"""Grammars are compiled where they can be given up: time runs out, the process dies, the cache is full."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_folders import byte_level, write_folder
from sheaf_runtime.grammar.compiler import Compiler
from sheaf_runtime.grammar.errors import GrammarError
from sheaf_runtime.protocol.grammar import Grammar


@pytest.fixture
def compiler(tmp_path: Path) -> Iterator[Compiler]:
    tokenizer = byte_level()
    folder = write_folder(tmp_path, tokenizer)
    compiler = Compiler(str(folder), tokenizer.get_vocab_size(), (0,), cache_bytes=1)
    yield compiler
    compiler.close()


def compiled(compiler: Compiler, text: str) -> Any:
    return compiler.compile(Grammar(kind="regex", text=text)).result(timeout=60)


def test_who_takes_too_long_is_given_up_and_the_next_one_is_not(compiler: Compiler, tmp_path: Path) -> None:
    hasty = Compiler(str(tmp_path), compiler._size, (0,), compile_seconds=0.02)
    many = Grammar(kind="choice", text=json.dumps([f"choice {i}" for i in range(20_000)]))
    with pytest.raises(GrammarError, match=r"takes longer than 0\.02 s to compile"):
        hasty.compile(many).result(timeout=60)
    assert compiled(hasty, "b")
    hasty.close()


def test_compiling_makes_way_for_the_engine(compiler: Compiler) -> None:
    """The engine's threads have the priority 0; so has this process."""
    compiled(compiler, "a")
    (rehearsal,) = (r for r in [compiler._rehearsals.get() for _ in range(2)] if r._process is not None)
    assert rehearsal._process is not None
    assert os.getpriority(os.PRIO_PROCESS, rehearsal._process.pid) > 0
    thread = compiler._compiling.submit(threading.get_native_id).result()
    assert os.getpriority(os.PRIO_PROCESS, thread) > 0
    assert os.getpriority(os.PRIO_PROCESS, 0) == 0
    rehearsal.end()


def test_a_process_that_died_is_replaced(compiler: Compiler) -> None:
    compiled(compiler, "a")
    started = []
    for rehearsal in [compiler._rehearsals.get() for _ in range(2)]:
        if rehearsal._process is not None:
            rehearsal._process.kill()
            rehearsal._process.wait()
            started.append(rehearsal)
        compiler._rehearsals.put(rehearsal)
    verdicts = [rehearsal.judge(Grammar(kind="regex", text="b")) for rehearsal in started]
    assert all("cannot be compiled" in str(verdict.problem) for verdict in verdicts)
    assert compiled(compiler, "d")


def test_the_cache_forgets_what_was_used_longest_ago(compiler: Compiler) -> None:
    first = compiled(compiler, "a")
    assert compiled(compiler, "a") is first
    compiled(compiler, "b")
    assert compiled(compiler, "a") is not first
