"""``/rerank`` and ``/score``: how well texts go with a text."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Sequence

import orjson
from fastapi import APIRouter, Request, Response

from sheaf_runtime.server.generation import ClientDisconnected
from sheaf_runtime.server.ids import answer_id, new_id
from sheaf_runtime.server.json_route import JsonRoute
from sheaf_runtime.server.pooled import PooledBatch
from sheaf_runtime.server.pooling_inputs import pair_inputs, pooling_of, text_inputs
from sheaf_runtime.server.pooling_schemas import RerankRequest, ScoreRequest
from sheaf_runtime.server.service import Service

Pair = tuple[str, str]


def scoring_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["pooling"], route_class=JsonRoute)

    @router.post("/rerank", response_model=None)
    @router.post("/v1/rerank", response_model=None)
    @router.post("/v2/rerank", response_model=None)
    async def rerank(body: RerankRequest, request: Request) -> Response:
        """Documents by their relevance to a query, the most relevant first."""
        arrival = time.time()
        model = service.check_model(body.model)
        texts, id_ = body.texts, new_id("rerank-")
        try:
            scores, tokens = await _scores(
                service, id_, [(body.query, t) for t in texts], body, arrival, request
            )
        except ClientDisconnected:
            return Response(status_code=499)  # nobody reads it
        best = sorted(range(len(texts)), key=lambda i: -scores[i])[: body.top_n or None]
        results = [
            {
                "index": i,
                "relevance_score": scores[i],
                **({"document": {"text": texts[i]}} if body.return_documents else {}),
            }
            for i in best
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        id_ = answer_id(id_, body.request_id)
        return _json({"id": id_, "model": model, "usage": usage, "results": results})

    @router.post("/score", response_model=None)
    @router.post("/v1/score", response_model=None)
    async def score(body: ScoreRequest, request: Request) -> Response:
        """A number for each pair of texts, in their order."""
        arrival = time.time()
        model = service.check_model(body.model)
        id_ = new_id("score-")
        try:
            scores, tokens = await _scores(service, id_, body.pairs, body, arrival, request)
        except ClientDisconnected:
            return Response(status_code=499)  # nobody reads it
        data = [{"index": i, "object": "score", "score": value} for i, value in enumerate(scores)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        id_ = answer_id(id_, body.request_id)
        answer = {"id": id_, "object": "list", "created": int(arrival), "model": model}
        return _json({**answer, "data": data, "usage": usage})

    return router


async def _scores(
    service: Service,
    id_: str,
    pairs: Sequence[Pair],
    body: RerankRequest | ScoreRequest,
    arrival: float,
    request: Request,
) -> tuple[list[float], int]:
    """By the model's score head, or as the cosine of two embeddings; and how many tokens that took."""
    service.admit()
    spec = pooling_of(service, scores=True)
    if spec.score is not None:
        inputs = await pair_inputs(service, spec, pairs, body)
        batch = PooledBatch(service, id_, inputs, arrival)
        return [vector[0] for vector in await batch.run(body, body.params, request)], batch.num_tokens
    distinct: dict[str, str] = {}
    for index, pair in enumerate(pairs):
        for side, text in zip(body.sides, pair, strict=True):
            distinct.setdefault(text, f"{side} {index}")
    inputs = await text_inputs(service, spec, distinct, body)
    batch = PooledBatch(service, id_, inputs, arrival)
    vectors = dict(zip(distinct, await batch.run(body, body.params, request), strict=True))
    return [_cosine(vectors[one], vectors[two]) for one, two in pairs], batch.num_tokens


def _cosine(one: array[float], two: array[float]) -> float:
    product = math.fsum(a * b for a, b in zip(one, two, strict=True))
    lengths = math.hypot(*one) * math.hypot(*two)
    return product / lengths if lengths else 0.0


def _json(value: object) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")
