"""Which cached page begins like a prompt goes on, beside a search through all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sheaf_runtime.engine.branches import Branches

TOKENS = st.lists(st.sampled_from([0, 1, 255, 256, 65536, 2**32 - 1]), min_size=1, max_size=5)
BEFORE = st.sampled_from([b"root", b"page"])


def shared(a: list[int], b: list[int]) -> int:
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count


@given(
    pages=st.lists(st.tuples(BEFORE, TOKENS), max_size=12),
    gone=st.sets(st.integers(0, 11)),
    before=BEFORE,
    wanted=TOKENS,
)
def test_the_closest_has_most_tokens_in_common(
    pages: list[tuple[bytes, list[int]]], gone: set[int], before: bytes, wanted: list[int]
) -> None:
    branches = Branches()
    for number, (parent, tokens) in enumerate(pages):
        branches.add(parent, tokens, b"%d" % number)
    for number in gone:
        branches.discard(b"%d" % number)  # some were never there
    left = {b"%d" % n: page for n, page in enumerate(pages) if n not in gone}
    assert len(branches) == len(left)
    most = max((shared(tokens, wanted) for parent, tokens in left.values() if parent == before), default=0)
    found = branches.closest(before, wanted)
    if most == 0:
        assert found is None
    else:
        assert found is not None
        assert found[0] == most == shared(left[found[1]][1], wanted)
        assert left[found[1]][0] == before
    branches.clear()
    assert branches.closest(before, wanted) is None
