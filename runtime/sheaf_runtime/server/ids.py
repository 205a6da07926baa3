"""The ids of answers: what the engine knows a request by, and what the client is told."""

from __future__ import annotations

import uuid


def new_id(kind: str) -> str:
    """``kind`` with its joint: ``"cmpl-"``. The engine's requests are called after it: no two are equal."""
    return f"{kind}{uuid.uuid4().hex}"


def answer_id(own: str, asked: str | None) -> str:
    """``asked``, the field ``request_id``, stands behind the kind; a response's id is nothing else. As in
    vLLM."""
    kind, joint, _ = own.partition("-")
    if asked is None:
        return own
    return f"{kind}-{asked}" if joint else asked
