"""What a request gets that wants no tokens: a vector made of its prompt's hidden states."""

from __future__ import annotations

import msgspec


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the vector is finished.

    Attributes:
        dimensions: keep the first so many numbers of an embedding; None keeps all.
        activate: do what the model does last: an embedding gets the length one, a score goes through the
            model's activation.
    """

    dimensions: int | None = None
    activate: bool = True
