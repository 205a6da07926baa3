"""docs/flags.md is made from the parsers; run `make flags`."""

from __future__ import annotations

from sheaf_runtime.cli.page import PAGE, page


def test_the_page_is_what_the_parsers_say() -> None:
    assert PAGE.read_text() == page(), "run make flags"
