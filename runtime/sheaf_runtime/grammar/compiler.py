"""Compiles grammars beside the engine's steps, each once: tried out in another process, then in a thread,
both at low priority."""

from __future__ import annotations

import queue
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from sheaf_runtime.gguf.folder import open_folder
from sheaf_runtime.grammar.errors import GrammarError
from sheaf_runtime.grammar.recipe import Recipe
from sheaf_runtime.grammar.rehearsal import OVER, Verdict
from sheaf_runtime.grammar.vocabulary import Vocabulary
from sheaf_runtime.priority import make_way
from sheaf_runtime.protocol.grammar import Grammar
from sheaf_runtime.text.tokenizer import Tokenizer

COMPILE_SECONDS = 10.0  # of the processor
ANSWER_SECONDS = 60.0  # by the clock: others may have the processor meanwhile
CACHE_BYTES = 512 * 2**20
WORKERS = 2  # one grammar that takes its time does not hold up the next


@dataclass
class GrammarCounters:
    compiled: int = 0
    refused: int = 0
    cache_hits: int = 0
    seconds: float = 0.0


class Compiler:
    """``compile`` from one thread. Nothing is started before the first grammar comes."""

    def __init__(
        self,
        folder: str,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        *,
        compile_seconds: float = COMPILE_SECONDS,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._folder, self._size, self._eos = folder, vocab_size, eos_token_ids
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[tuple[str, ...], Future[Any]] = OrderedDict()
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="sheaf-grammar")
        self._compiling = ThreadPoolExecutor(1, "sheaf-compile", make_way)  # without the interpreter's lock
        self._lock = threading.Lock()
        self._rehearsals: queue.SimpleQueue[_Rehearsal] = queue.SimpleQueue()
        for _ in range(WORKERS):
            self._rehearsals.put(
                _Rehearsal(compile_seconds, [folder, str(vocab_size), *map(str, eos_token_ids)])
            )
        self.counters = GrammarCounters()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(Tokenizer.from_folder(open_folder(self._folder)), self._size, self._eos)

    def compile(self, grammar: Grammar) -> Future[Any]:
        """xgrammar's compiled grammar, or ``GrammarError``."""
        key = (grammar.kind, grammar.before, grammar.text)
        future = self._cache.get(key)
        if future is None:
            self._evict()
            future = self._cache[key] = self._pool.submit(self._compile, grammar)
        else:
            self._cache.move_to_end(key)
            self.counters.cache_hits += 1
        return future

    def _evict(self) -> None:
        sizes = {key: _size(key[2], future) for key, future in self._cache.items() if future.done()}
        total = sum(sizes.values())
        for key, size in sizes.items():
            if total <= self._cache_bytes:
                break
            del self._cache[key]
            total -= size

    def _compile(self, grammar: Grammar) -> Any:
        began = time.perf_counter()
        rehearsal = self._rehearsals.get()
        try:
            verdict = rehearsal.judge(grammar)
            if verdict.problem is not None:
                raise GrammarError(verdict.problem)
            recipe = Recipe(verdict.text, verdict.is_tag)
            with self._lock:  # of the vocabulary, which is made once
                compiler = self.vocabulary.compiler(grammar)
            compiled = self._compiling.submit(recipe.compile, compiler).result()
        except BaseException:
            self.counters.refused += 1
            raise
        finally:
            self._rehearsals.put(rehearsal)
        self.counters.compiled += 1
        self.counters.seconds += time.perf_counter() - began
        return compiled

    def close(self) -> None:
        for threads in (self._pool, self._compiling):
            threads.shutdown(wait=False, cancel_futures=True)
        while not self._rehearsals.empty():
            self._rehearsals.get().end()


class _Rehearsal:
    """One such process, started when it is needed and ended when it does not answer."""

    def __init__(self, seconds: float, arguments: list[str]) -> None:
        """``seconds`` of the processor that a grammar may take."""
        self._seconds, self._arguments = seconds, arguments
        self._process: subprocess.Popen[bytes] | None = None

    def judge(self, grammar: Grammar) -> Verdict:
        if self._process is None:
            started = self._start()
            if started.problem is not None:
                self.end()
                return started
        assert self._process is not None
        assert self._process.stdin is not None
        frame = msgspec.msgpack.encode(grammar)
        try:
            self._process.stdin.write(len(frame).to_bytes(4, "little") + frame)
            self._process.stdin.flush()
            return self._answer()
        except (TimeoutError, EOFError, OSError) as error:
            if self.end() == -OVER or isinstance(error, TimeoutError):
                return Verdict(problem=f"takes longer than {self._seconds:g} s to compile; make it smaller")
            return Verdict(
                problem="cannot be compiled: it is too large, or nested too deeply; make it smaller"
            )

    def _start(self) -> Verdict:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "sheaf_runtime.grammar.rehearsal"),
                *(str(self._seconds), *self._arguments),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the library's warnings about what is judged here
        )
        try:
            return self._answer()
        except (TimeoutError, EOFError) as error:
            return Verdict(problem=f"structured output is not available: {type(error).__name__}")

    def _answer(self) -> Verdict:
        deadline = time.monotonic() + ANSWER_SECONDS
        head = self._take(4, deadline)
        return msgspec.msgpack.decode(self._take(int.from_bytes(head, "little"), deadline), type=Verdict)

    def _take(self, size: int, deadline: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor, taken = self._process.stdout.fileno(), b""
        while len(taken) < size:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            piece = self._process.stdout.read1(size - len(taken))  # type: ignore[attr-defined]
            if not piece:
                raise EOFError
            taken += piece
        return taken

    def end(self) -> int | None:
        """What it ended by, if that was before: its status as ``Popen`` has it."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        process.kill()
        process.communicate()
        return process.returncode


def _size(text: str, future: Future[Any]) -> int:
    if future.cancelled() or future.exception() is not None:
        return len(text) + 4096
    return int(future.result().memory_size_bytes())
