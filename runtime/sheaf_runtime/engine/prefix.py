"""Content addresses of KV pages: a hash chain over (parent, tokens), rooted in tagged extras.

The keys and values of a page depend on every token before it and on whatever else changes the computation
(adapter) or must not be shared (cache salt). So a page's digest covers its tokens and the digest before it,
and the chain starts from the extras. Each extra is written as tag, length, value: no two different
sets of extras have the same bytes. SHA-256, because a collision would show one user another's context.
"""

from __future__ import annotations

from array import array
from hashlib import sha256


def root_digest(
    *, cache_salt: str | None = None, lora_id: str | None = None, rope: str | None = None
) -> bytes:
    """Where the chain of a request starts. ``rope`` names frequencies that not all requests have."""
    h = sha256(b"sheaf.prefix.v1")
    for tag, value in ((b"salt", cache_salt), (b"lora", lora_id), (b"rope", rope)):
        if value is not None:
            data = value.encode("utf-8", "surrogatepass")
            h.update(tag + len(data).to_bytes(8, "little") + data)
    return h.digest()


def extend_digests(
    digests: list[bytes], root: bytes, token_ids: list[int], block_size: int, num_blocks: int
) -> None:
    """Append to ``digests`` until it has those of the first ``num_blocks`` full pages of ``token_ids``."""
    parent = digests[-1] if digests else root
    for i in range(len(digests), num_blocks):
        tokens = array("I", token_ids[i * block_size : (i + 1) * block_size])
        assert len(tokens) == block_size, "only full pages have a digest"
        parent = sha256(parent + tokens.tobytes()).digest()
        digests.append(parent)


def part_digest(before: bytes, token_ids: list[int]) -> bytes:
    """That of a page which a request left behind half full: no full page has so few tokens."""
    return sha256(before + array("I", token_ids).tobytes()).digest()


def page_key(group: int, digest: bytes) -> bytes:
    """The address of a page in one KV group: the same tokens have different pages in each."""
    return b"g%d:" % group + digest


def part_key(group: int, digest: bytes) -> bytes:
    """That of a page which is not full."""
    return b"p%d:" % group + digest


def split_key(key: bytes) -> tuple[int, bytes, bool]:
    """The group and the digest of a page's address, and whether it is full."""
    group, _, digest = key.partition(b":")
    return int(group[1:]), digest, group.startswith(b"g")
