"""The bodies of ``/v1/embeddings``, ``/rerank`` and ``/score``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sheaf_runtime.protocol.pooling import PoolingParams
from sheaf_runtime.server.fields import MAX_PROMPTS, Number, Prompts
from sheaf_runtime.server.messages import Message
from sheaf_runtime.server.schemas import Body, ChatInput, RequestId, Truncation
from sheaf_runtime.server.unsupported import ParameterError

Texts = str | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
# The two sides of a pair, by each of the names that vLLM knows them by.
PAIRS = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))


class PoolingBody(Body):
    model: str | None = None
    truncate_prompt_tokens: Truncation = None
    add_special_tokens: bool = True
    use_activation: bool | None = None
    request_id: RequestId = None
    priority: Annotated[int, Number("priority")] = 0
    timeout: Annotated[float | None, Number("timeout")] = None
    cache_salt: str | None = Field(None, min_length=1, max_length=1024)

    @property
    def params(self) -> PoolingParams:
        return PoolingParams(activate=self.use_activation is not False)


class EmbeddingRequest(PoolingBody, ChatInput):
    """Either ``input``, or ``messages`` with what belongs to a chat, which is one input."""

    input: Prompts | None = None
    messages: list[Message] | None = Field(None, min_length=1)  # type: ignore[assignment]
    add_special_tokens: bool | None = None  # type: ignore[assignment]
    add_generation_prompt: bool = False
    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] = "float"
    embed_dtype: Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"] = "float32"
    endianness: Literal["native", "little", "big"] = "native"
    dimensions: Annotated[int | None, Number("dimensions")] = None
    prompt_name: str | None = None

    @model_validator(mode="after")
    def _one_of(self) -> EmbeddingRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either input or messages")
        for name in sorted(ChatInput.model_fields.keys() - {"add_special_tokens"}):
            asked = getattr(self, name) != type(self).model_fields[name].default
            if asked and self.messages is None:
                raise ParameterError(name, "only allowed with messages")
        if self.messages is not None and self.prompt_name is not None:
            raise ParameterError("prompt_name", "not with messages; write it into them")
        if self.add_special_tokens is None:  # a chat template writes them itself
            self.add_special_tokens = self.messages is None
        return self


class Document(BaseModel):
    """Of what else clients put beside the text (a title, an image, an id) nothing is scored."""

    model_config = ConfigDict(strict=True, extra="ignore")

    text: str


class RerankRequest(PoolingBody):
    query: str
    documents: list[str | Document] = Field(min_length=1, max_length=MAX_PROMPTS)
    top_n: Annotated[int | None, Number("top_n")] = None
    return_documents: bool = True

    @property
    def sides(self) -> tuple[str, str]:
        """The names of a pair's two fields."""
        return "query", "documents"

    @property
    def texts(self) -> list[str]:
        return [item if isinstance(item, str) else item.text for item in self.documents]


class ScoreRequest(PoolingBody):
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None

    @model_validator(mode="after")
    def _one_pair(self) -> ScoreRequest:
        names = {name for pair in PAIRS for name in pair}
        given = {name for name in names if getattr(self, name) is not None}
        if given not in [set(pair) for pair in PAIRS]:
            raise ValueError("give queries and documents, or text_1 and text_2")
        left, right = self._sides()
        if len(left) not in (1, len(right)):
            one, two = self.sides
            raise ParameterError(two, f"{len(left)} {one} need as many, got {len(right)}")
        return self

    @property
    def sides(self) -> tuple[str, str]:
        """The names of a pair's two fields."""
        return next(pair for pair in PAIRS if None not in (getattr(self, pair[0]), getattr(self, pair[1])))

    def _sides(self) -> tuple[list[str], list[str]]:
        one, two = (getattr(self, side) for side in self.sides)
        return [one] if isinstance(one, str) else one, [two] if isinstance(two, str) else two

    @property
    def pairs(self) -> list[tuple[str, str]]:
        left, right = self._sides()
        return list(zip(left * len(right) if len(left) == 1 else left, right, strict=True))
