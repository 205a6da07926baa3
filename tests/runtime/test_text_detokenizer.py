"""Incremental text equals the text of all tokens decoded at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_folders import byte_fallback, byte_level, metaspace
from sheaf_runtime.text import OutputText, Tokenizer
from sheaf_runtime.text.detokenizer import LONGEST_BYTE_RUN, Detokenizer

TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback(), "metaspace": metaspace()}
EMOJI = "a 👩‍👩‍👧 é世界, the 😀😀 hello \ufffd €"


def pieces_of(ids: list[int], cuts: list[int]) -> list[list[int]]:
    """Cuts a list into consecutive parts of the given lengths, and the rest."""
    parts, at = [], 0
    for cut in cuts:
        parts.append(ids[at : at + cut])
        at += cut
    return [*parts, ids[at:]]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("skip", [True, False])
@given(data=st.data())
def test_deltas_join_to_the_full_decode(name: str, skip: bool, data: st.DataObject) -> None:
    tokenizer = Tokenizer(TOKENIZERS[name])
    # Ids beyond the vocabulary too: a model's embedding may be padded.
    token = st.integers(0, tokenizer.vocab_size + 3)
    text_ids = st.text(max_size=12).map(lambda text: tokenizer.encode(text, add_special_tokens=False))
    some = st.one_of(st.lists(token, max_size=40), text_ids, st.just(tokenizer.encode(EMOJI)))
    ids = [id_ for part in data.draw(st.lists(some, max_size=4)) for id_ in part]
    if tokenizer.byte_ids:
        ids = limit_byte_runs(ids, tokenizer)
    cuts = data.draw(st.lists(st.integers(0, 3), max_size=len(ids)))
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    text = "".join(map(detokenizer.push, pieces_of(ids, cuts))) + detokenizer.finish()
    assert text == tokenizer.decode(ids, skip_special_tokens=skip)


def limit_byte_runs(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    kept: list[int] = []
    for id_ in ids:
        tail = kept[-(LONGEST_BYTE_RUN - 4) :]
        full = len(tail) == LONGEST_BYTE_RUN - 4 and all(other in tokenizer.byte_ids for other in tail)
        if not (full and (id_ in tokenizer.byte_ids or id_ in tokenizer.special_ids)):
            kept.append(id_)
    return kept


@given(st.lists(st.integers(3, 258), min_size=200, max_size=400))
def test_long_broken_utf8_stays_exact(ids: list[int]) -> None:
    tokenizer = Tokenizer(TOKENIZERS["byte_level"])
    detokenizer = Detokenizer(tokenizer)
    text = "".join(detokenizer.push([id_]) for id_ in ids) + detokenizer.finish()
    assert text == tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_characters_are_never_split(name: str) -> None:
    tokenizer = Tokenizer(TOKENIZERS[name])
    ids = tokenizer.encode("a😀é世b", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([id_]) for id_ in ids] + [detokenizer.finish()]
    assert "".join(pieces) == "a😀é世b"
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", ["byte_level", "byte_fallback"])
def test_the_hold_is_bounded(name: str) -> None:
    tokenizer = Tokenizer(TOKENIZERS[name])
    byte = 3 + (0x80 if name == "byte_fallback" else 200)
    detokenizer = Detokenizer(tokenizer)
    text = "".join(detokenizer.push([byte]) for _ in range(1000))
    assert len(text) > 1000 - 2 * LONGEST_BYTE_RUN
    assert len(detokenizer._window) <= 2 * LONGEST_BYTE_RUN


def test_broken_bytes_at_the_end_are_flushed() -> None:
    tokenizer = Tokenizer(TOKENIZERS["byte_level"])
    ids = tokenizer.encode("ab😀", add_special_tokens=False)[:-1]
    text = OutputText(tokenizer)
    assert text.push(ids) == "ab"
    assert text.push([], finished=True) == "\ufffd"


def test_the_end_token_is_counted_but_not_written() -> None:
    tokenizer = Tokenizer(TOKENIZERS["byte_level"])
    ids = tokenizer.encode("ab!", add_special_tokens=False)
    text = OutputText(tokenizer)
    assert text.push(ids, finished=True, stop_token_id=ids[-1]) == "ab"
    assert text.num_tokens == 3
    including = OutputText(tokenizer, include_stop=True)
    assert including.push(ids, finished=True, stop_token_id=ids[-1]) == "ab!"
