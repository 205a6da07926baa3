"""From texts to the token ids that are pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sheaf_runtime.pooling.spec import PoolingSpec
from sheaf_runtime.protocol.limits import refuse_ids, refuse_length
from sheaf_runtime.server.errors import ApiError
from sheaf_runtime.server.pooling_schemas import EmbeddingRequest, PoolingBody
from sheaf_runtime.server.prompts import encode, encode_pair, render_chat
from sheaf_runtime.server.sampling import refuse
from sheaf_runtime.server.service import Service
from sheaf_runtime.text import ChatTemplateError

# As Qwen3's rerankers were trained; their answer's first token is "yes" or "no".
QWEN3_PAIR = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the "
    'Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)


def pooling_of(service: Service, *, scores: bool) -> PoolingSpec:
    """Raises ``ApiError`` 400 if the model does not do what is asked. An embedding model scores too."""
    spec = service.folder.pooling
    if spec is None:
        raise ApiError(
            400,
            "this model generates text; it makes no embeddings and no scores (--runner pooling)",
            param="model",
        )
    if spec.score is not None and not scores:
        raise ApiError(400, "this model scores pairs of texts: use /rerank or /score", param="model")
    return spec


async def embedding_inputs(service: Service, spec: PoolingSpec, body: EmbeddingRequest) -> list[list[int]]:
    if body.messages is not None:
        text = await render_chat(service, body)
        ids = await text_ids(service, text, body, "messages", "the chat")
        return [_fitting(service, ids, body, "the chat", "messages")]
    assert body.input is not None
    named = body.prompt_name
    if named is not None and named not in spec.prompts:
        known = ", ".join(map(repr, spec.prompts)) or "none"
        raise ApiError(
            400, f"prompt_name: the model has no prompt {named[:80]!r}; it has {known}", param="prompt_name"
        )
    if named is not None and not all(isinstance(item, str) for item in body.input):
        raise ApiError(
            400, "prompt_name: a prompt cannot go before token ids; send texts", param="prompt_name"
        )
    prefix = spec.prompts.get(named or spec.default_prompt or "", "")
    inputs = []
    for index, item in enumerate(body.input):
        name = f"input {index}"
        if isinstance(item, str):
            ids = await text_ids(service, _cased(spec, prefix + item), body, "input", name)
        else:
            ids = item
        inputs.append(_fitting(service, ids, body, name, "input", appended=isinstance(item, str)))
    return inputs


async def text_inputs(
    service: Service, spec: PoolingSpec, texts: Mapping[str, str], body: PoolingBody
) -> list[list[int]]:
    """Of each text; its value says what it is of the request: ``documents 3``."""
    prefix = spec.prompts.get(spec.default_prompt or "", "")
    inputs = []
    for text, name in texts.items():
        param = name.partition(" ")[0]
        ids = await text_ids(service, _cased(spec, prefix + text), body, param, name)
        inputs.append(_fitting(service, ids, body, name, param))
    return inputs


async def pair_inputs(
    service: Service, spec: PoolingSpec, pairs: Sequence[tuple[str, str]], body: PoolingBody
) -> list[list[int]]:
    """Each pair as one prompt: by the model's template for pairs, else as the tokenizer joins two texts."""
    folder, inputs = service.folder, []
    template = folder.chat_template
    given = service.server_config.chat_template is not None
    for index, (query, document) in enumerate(pairs):
        if template is not None and (given or ("query" in template.source and "document" in template.source)):
            messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
            try:
                text = template.render(messages)
            except ChatTemplateError as error:
                raise ApiError(400, str(error), param="documents") from error
            ids = await encode(service, text, add_special_tokens=False, param="documents", keep=0)
        elif spec.qwen3_template:
            text = QWEN3_PAIR.format(query=query, document=document)
            ids = await encode(service, text, add_special_tokens=False, param="documents", keep=0)
        else:
            ids = await encode_pair(service, query, document, param="documents")
        inputs.append(_fitting(service, ids, body, f"pair {index}", "documents"))
    return inputs


async def text_ids(service: Service, text: str, body: PoolingBody, param: str, name: str) -> list[int]:
    """``name`` says which text it is of the request's field ``param``."""
    limit = service.max_model_len
    assert limit is not None
    if body.truncate_prompt_tokens is None:
        least = len(text) // service.folder.tokenizer.longest_token
        refuse(refuse_length(limit, least, 0, param=param, name=name, at_least=True))
    special = body.add_special_tokens is not False
    return await encode(service, text, add_special_tokens=special, param=param, keep=0)


def _cased(spec: PoolingSpec, text: str) -> str:
    return text.lower() if spec.lower else text


def _fitting(
    service: Service, ids: list[int], body: PoolingBody, name: str, param: str, *, appended: bool = True
) -> list[int]:
    """The first tokens, as many as were asked for; what the tokenizer puts at the end stays at the end."""
    info, keep = service.client.info, body.truncate_prompt_tokens
    assert info is not None
    if keep is not None:
        keep = info.max_model_len if keep < 0 else keep
        if len(ids) > keep:
            num = service.folder.tokenizer.num_appended if appended and body.add_special_tokens else 0
            num = min(num, keep)
            ids = ids[: keep - num] + ids[len(ids) - num :]
    if not ids:
        raise ApiError(400, f"{name} has no tokens; give at least one", param=param)
    refuse(refuse_ids(param, (min(ids), max(ids)), info.vocab_size))
    refuse(refuse_length(info.max_model_len, len(ids), 0, param=param, name=name))
    return ids
