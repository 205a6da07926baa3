"""``/v1/embeddings``."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from sheaf_runtime.pooling.spec import PoolingSpec
from sheaf_runtime.protocol.pooling import PoolingParams
from sheaf_runtime.server.embedding_answer import embedding_answer
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.generation import ClientDisconnected
from sheaf_runtime.server.ids import answer_id, new_id
from sheaf_runtime.server.json_route import JsonRoute
from sheaf_runtime.server.pooled import PooledBatch
from sheaf_runtime.server.pooling_inputs import embedding_inputs, pooling_of
from sheaf_runtime.server.pooling_schemas import EmbeddingRequest
from sheaf_runtime.server.service import Service


def embedding_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["pooling"], route_class=JsonRoute)

    @router.post("/embeddings", response_model=None)
    async def create_embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """A vector for each input, in their order."""
        arrival = time.time()
        model = service.check_model(body.model)
        service.admit()
        spec = pooling_of(service, scores=False)
        params = _params(service, spec, body)
        inputs = await embedding_inputs(service, spec, body)
        batch = PooledBatch(service, new_id("embd-"), inputs, arrival)
        try:
            vectors = await batch.run(body, params, request)
        except ClientDisconnected:
            return Response(status_code=499)  # nobody reads it
        id_ = answer_id(batch.id, body.request_id)
        return embedding_answer(
            vectors, body, id_=id_, created=int(arrival), model=model, tokens=batch.num_tokens
        )

    return router


def _params(service: Service, spec: PoolingSpec, body: EmbeddingRequest) -> PoolingParams:
    """Raises ``ApiError`` 400 for a length that the model was not trained for."""
    info, asked = service.client.info, body.dimensions or spec.dimensions
    assert info is not None
    size, activate = info.pooled_size or 0, body.use_activation is not False
    if asked is None or asked == size:
        return PoolingParams(activate=activate)
    if spec.matryoshka is False and body.dimensions is not None:
        raise ApiError(
            400,
            f"dimensions: this model's embeddings have {size} numbers and cannot be cut; leave it out (or "
            "start the server with --hf-overrides '{\"is_matryoshka\": true}' if they can)",
            param="dimensions",
        )
    allowed = spec.matryoshka if isinstance(spec.matryoshka, tuple) else None
    if asked > size or (allowed is not None and asked not in allowed):
        known = ", ".join(map(str, allowed)) if allowed else f"1 to {size}"
        raise ApiError(400, f"dimensions must be one of {known}, got {asked}", param="dimensions")
    return PoolingParams(dimensions=asked, activate=activate)
