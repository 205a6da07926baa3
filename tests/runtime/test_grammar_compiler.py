"""Grammars are compiled where they can be given up: time runs out, the process dies, the cache is full."""

from __future__ import annotations

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


def test_who_takes_too_long_is_given_up_and_the_next_one_is_not(compiler: Compiler) -> None:
    compiled(compiler, "a")
    patience, compiler._seconds = compiler._seconds, 0.0
    with pytest.raises(GrammarError, match="takes longer than 0 s"):
        compiled(compiler, "[a-z]{1,500}")
    compiler._seconds = patience
    assert compiled(compiler, "b")


def test_a_process_that_died_is_replaced(compiler: Compiler) -> None:
    compiled(compiler, "a")
    started = []
    for rehearsal in [compiler._rehearsals.get() for _ in range(2)]:
        if rehearsal._process is not None:
            rehearsal._process.kill()
            rehearsal._process.wait()
            started.append(rehearsal)
        compiler._rehearsals.put(rehearsal)
    verdicts = [rehearsal.judge(Grammar(kind="regex", text="b"), 10) for rehearsal in started]
    assert all("cannot be compiled" in str(verdict.problem) for verdict in verdicts)
    assert compiled(compiler, "d")


def test_the_cache_forgets_what_was_used_longest_ago(compiler: Compiler) -> None:
    first = compiled(compiler, "a")
    assert compiled(compiler, "a") is first
    compiled(compiler, "b")
    assert compiled(compiler, "a") is not first
