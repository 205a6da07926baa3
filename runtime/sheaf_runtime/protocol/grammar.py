"""What an output has to look like, as the API process hands it to the engine."""

from __future__ import annotations

from typing import Literal

import msgspec

GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "grammar", "structural_tag"]


class Grammar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A constraint on the text of a request, not yet checked: the engine refuses what it cannot hold.

    Attributes:
        kind: how ``text`` is to be read.
        text: the JSON schema, the regular expression, the JSON list of choices, the grammar (xgrammar's EBNF)
            or the structural tag (JSON); nothing for ``json_object``.
        param: the request's field that has to change if the grammar is refused.
        before: what comes before the text, such as thoughts, as a format of structural tags (JSON).
        marks: special tokens that the formats name by their ids.
    """

    kind: GrammarKind
    text: str = ""
    param: str = "structured_outputs"
    before: str = ""
    marks: tuple[int, ...] = ()
