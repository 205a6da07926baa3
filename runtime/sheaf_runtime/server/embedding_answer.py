"""The answer of ``/v1/embeddings``, in each of vLLM's encodings."""

from __future__ import annotations

import base64
import json
import sys
from array import array
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import Response

from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.pooling_schemas import EmbeddingRequest

# Where the parts of the bytes lie is told in a header, and clients and proxies do not take any length.
LONGEST_HEADER = 32 * 1024


def embedding_answer(
    vectors: Sequence[array[float]],
    body: EmbeddingRequest,
    *,
    id_: str,
    created: int,
    model: str,
    tokens: int,
) -> Response:
    """Raises ``ApiError`` 400 for more inputs than the header of ``bytes`` can tell of."""
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    head = {"id": id_, "created": created, "model": model}
    if body.encoding_format in ("float", "base64"):
        written = _floats if body.encoding_format == "float" else _base64
        data = [
            {"object": "embedding", "index": index, "embedding": written(vector, body)}
            for index, vector in enumerate(vectors)
        ]
        answer = {**head, "object": "list", "data": data, "usage": usage}
        return Response(orjson.dumps(answer), media_type="application/json")
    parts = [packed(vector, body.embed_dtype, body.endianness) for vector in vectors]
    headers = {}
    if body.encoding_format == "bytes":
        places = {**head, "data": _places(parts, vectors, body), "usage": usage}
        headers["metadata"] = json.dumps(places)  # ASCII, whatever the model is called
        if len(headers["metadata"]) > LONGEST_HEADER:
            raise ApiError(
                400,
                f"encoding_format: the header of 'bytes' cannot tell of {len(parts)} inputs; send fewer, or "
                "ask for 'bytes_only' (one vector behind the other, and no header)",
                param="encoding_format",
            )
    return Response(b"".join(parts), headers=headers, media_type="application/octet-stream")


def packed(vector: array[float], dtype: str, order: str) -> bytes:
    """The numbers as ``dtype`` (vLLM's names), one behind the other; ``order`` of their bytes: ``native``,
    ``little`` or ``big``."""
    swap = order not in ("native", sys.byteorder)
    if dtype == "float32":
        if swap:
            vector = array("f", vector)
            vector.byteswap()
        return vector.tobytes()
    # Only here: it needs numpy, which this process goes without.
    from sheaf_runtime.pooling.narrow import narrow

    bits = narrow(vector, dtype)
    return (bits.byteswap() if swap else bits).tobytes()


def _floats(vector: array[float], body: EmbeddingRequest) -> list[float]:
    return vector.tolist()


def _base64(vector: array[float], body: EmbeddingRequest) -> str:
    return base64.b64encode(packed(vector, body.embed_dtype, body.endianness)).decode()


def _places(
    parts: Sequence[bytes], vectors: Sequence[array[float]], body: EmbeddingRequest
) -> list[dict[str, Any]]:
    places: list[dict[str, Any]] = []
    start = 0
    for index, (part, vector) in enumerate(zip(parts, vectors, strict=True)):
        kind = {"index": index, "embed_dtype": body.embed_dtype, "endianness": body.endianness}
        places.append({**kind, "start": start, "end": start + len(part), "shape": [len(vector)]})
        start += len(part)
    return places
