"""Large texts in threads: the same ids as ever, and everybody else goes on meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from model_folders import byte_fallback, byte_level, metaspace
from sheaf_runtime.text import Tokenizer
from sheaf_runtime.text.tokenizer import FEW

MAKERS = {"byte_level": byte_level, "byte_fallback": byte_fallback, "metaspace": metaspace}
TEXTS = ["", "the pages", "  the\n\n<tool> <|bos|> é世😀", "the other " * 5000, "e" * 3000]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("special", [True, False])
def test_ids_are_those_of_the_librarys_plain_way(name: str, special: bool) -> None:
    rust = MAKERS[name]()
    ours = Tokenizer(MAKERS[name]())
    for text in TEXTS:
        assert ours.encode(text, add_special_tokens=special) == rust.encode(text, None, False, special).ids
        assert ours.encoding_of_pair(text, "the").ids == rust.encode(text, "the").ids


@pytest.mark.parametrize("skip", [True, False])
def test_many_ids_are_decoded_as_few_are(skip: bool) -> None:
    tokenizer = Tokenizer(byte_level())
    ids = [*range(300)] * (FEW // 200)
    text = tokenizer.decode(ids, skip_special_tokens=skip)
    assert text == byte_level().decode(ids, skip_special_tokens=skip)


LONG = Tokenizer(byte_level())
WORDS = "the other pages " * 60_000
IDS = LONG.encode(WORDS)


@pytest.mark.parametrize(
    "work", [lambda: LONG.encoding(WORDS), lambda: LONG.decode(IDS)], ids=["encode", "decode"]
)
def test_other_threads_run_while_a_long_text_is_worked_on(work: Callable[[], object]) -> None:
    """vllm#24910, vllm#10635: a thread is not enough if the work in it keeps the interpreter's lock."""
    began, ended = threading.Event(), threading.Event()

    def run() -> None:
        began.set()
        work()
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    began.wait()
    first = last = time.perf_counter()
    longest = 0.0
    while not ended.is_set():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    longest = max(longest, time.perf_counter() - last)
    thread.join()
    assert longest < (time.perf_counter() - first) / 2
