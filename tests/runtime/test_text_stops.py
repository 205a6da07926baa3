"""Stop strings do not care where tokens end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from model_folders import byte_level
from sheaf_runtime.text import OutputText, Tokenizer
from sheaf_runtime.text.stops import StopStrings

letters = st.text("ab", max_size=20)


def run(stops: list[str], pieces: list[str], include: bool) -> tuple[str, str | None]:
    matcher, text = StopStrings(stops, include=include), ""
    for piece in pieces:
        text += matcher.push(piece)
        if matcher.hit:
            return text, matcher.hit
    return text + matcher.finish(), None


def by_character(stops: list[str], text: str, include: bool) -> tuple[str, str | None]:
    """The definition: the first prefix of the text that ends in a stop string, the longest of those."""
    for end in range(len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            stop = max(hits, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@given(
    st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3), st.lists(letters), st.booleans()
)
def test_any_cut_gives_the_same(stops: list[str], pieces: list[str], include: bool) -> None:
    assert run(stops, pieces, include) == by_character(stops, "".join(pieces), include)


def test_no_more_is_held_back_than_could_become_a_stop() -> None:
    matcher = StopStrings(["STOP"])
    assert matcher.push("a ST") == "a "
    assert matcher.push("xS") == "STx"
    assert matcher.push("TO") == ""
    assert matcher.finish() == "STO"


def test_a_stop_across_tokens_counts_the_tokens_up_to_its_end() -> None:
    tokenizer = Tokenizer(byte_level())
    ids = tokenizer.encode("abcdef", add_special_tokens=False)
    text = OutputText(tokenizer, stop=["cd"])
    assert text.push(ids) == "ab"
    assert text.stop_string == "cd"
    assert text.num_tokens == 4


def test_min_tokens_come_before_any_stop() -> None:
    tokenizer = Tokenizer(byte_level())
    ids = tokenizer.encode("xxabxx", add_special_tokens=False)
    text = OutputText(tokenizer, stop=["x"], min_tokens=3)
    assert text.push(ids) == "xxab"
    assert text.num_tokens == 5
