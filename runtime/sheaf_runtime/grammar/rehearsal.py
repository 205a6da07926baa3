"""A process that tries grammars out:
``python -m sheaf_runtime.grammar.rehearsal SECONDS FOLDER VOCAB_SIZE EOS...``.

A grammar may need for ever, use up the memory or end the process that compiles it, and native code cannot be
interrupted. So each is compiled here first, at low priority, where time and memory are limited; the engine
compiles only what has passed. One that takes more than SECONDS of the processor ends the process by ``OVER``.
Frames in both directions are length (4 bytes) and MessagePack.
"""

from __future__ import annotations

import ctypes
import resource
import signal
import sys
from typing import Any

import msgspec
import numpy as np

from sheaf_runtime.gguf.folder import open_folder
from sheaf_runtime.grammar.errors import GrammarError
from sheaf_runtime.grammar.matcher import Matcher
from sheaf_runtime.grammar.recipe import recipe_of, words
from sheaf_runtime.grammar.vocabulary import Vocabulary
from sheaf_runtime.priority import make_way
from sheaf_runtime.protocol.grammar import Grammar
from sheaf_runtime.text.tokenizer import Tokenizer

PR_SET_PDEATHSIG = 1
MEMORY = 4 * 2**30  # of address space
MAX_COMPILED = 64 * 2**20  # bytes
OVER = signal.SIGPROF


class Verdict(msgspec.Struct, frozen=True):
    """The recipe that was tried out, or why there is none."""

    text: str = ""
    is_tag: bool = False
    problem: str | None = None


def main(argv: list[str]) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.modules["torch"] = None  # type: ignore[assignment]  # the binding looks for it and would load it
    seconds, folder, size, *eos = argv
    decode = msgspec.msgpack.Decoder(Grammar).decode
    try:
        vocabulary = Vocabulary(Tokenizer.from_folder(open_folder(folder)), int(size), tuple(map(int, eos)))
        vocabulary.compiler(Grammar(kind="json_object"))
        broken = None
    except GrammarError as error:
        broken = str(error)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    make_way()  # only now: the first grammar need not wait for all of the start that long
    _write(Verdict(problem=broken))
    while frame := _read():
        grammar = decode(frame)
        signal.setitimer(signal.ITIMER_PROF, float(seconds))
        try:
            recipe = recipe_of(grammar)
            compiled = recipe.compile(vocabulary.compiler(grammar))
            _check_begin(compiled, vocabulary)
            if compiled.memory_size_bytes() > MAX_COMPILED:
                raise GrammarError(f"is larger than {MAX_COMPILED} bytes when compiled; make it smaller")
            verdict = Verdict(recipe.text, recipe.is_tag)
        except GrammarError as error:
            verdict = Verdict(problem=str(error))
        except RecursionError:
            verdict = Verdict(problem="is nested too deeply; make it flatter")
        except MemoryError:
            verdict = Verdict(problem="needs too much memory; make it smaller")
        except Exception as error:  # the library raises several kinds
            verdict = Verdict(problem=words(error))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(verdict)


def _check_begin(compiled: Any, vocabulary: Vocabulary) -> None:
    """Raises ``GrammarError`` for what no text fits, such as a rule that only refers to itself."""
    mask = np.zeros((1, -(-vocabulary.size // 32)), np.int32)
    matcher = Matcher(compiled, end_ids=vocabulary.end_ids, stop_ids=())
    matcher.fill(mask, 0, may_stop=True)
    if not mask.any():
        raise GrammarError("nothing fits: no token can come first")


def _read() -> bytes:
    size = int.from_bytes(sys.stdin.buffer.read(4), "little")
    return sys.stdin.buffer.read(size)


def _write(verdict: Verdict) -> None:
    frame = msgspec.msgpack.encode(verdict)
    sys.stdout.buffer.write(len(frame).to_bytes(4, "little") + frame)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
