"""Embeddings, reranking and scores over HTTP, through the openai client where it has them."""

from __future__ import annotations

import base64
import json
import re
import socket
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
import torch.nn.functional as F
from model_folders import byte_level, write_folder
from serving import Served, serving, wait_for
from sheaf_runtime.server.embedding_answer import embedding_answer
from sheaf_runtime.server.pooling_schemas import EmbeddingRequest
from tiny_pooling import append_end, write_embedder, write_scorer
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast

PROMPTS = {"query": "Instruct: find pages\nQuery:", "document": ""}
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if not loop.last %} {% endif %}{% endfor %}"
    "{% if loud %}!{% endif %}{% if add_generation_prompt %} [assistant]{% endif %}"
)
TEXTS = ["A sheaf is a bundle of pages", "read", "", " ", "\u00e9t\u00e9 \U0001f33e \u4e16\u754c", "read"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_embedder(tmp_path_factory.mktemp("embedder"), prompts=PROMPTS)
    (made / "chat_template.jinja").write_text(TEMPLATE)
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps(config | {"matryoshka_dimensions": [8, 16]}))
    return made


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    flags = ("--served-model-name", "m", "--num-gpu-blocks-override", "200", "--max-num-seqs", "3")
    budget = ("--max-num-batched-tokens", "16", "--max-waiting-requests", "2")
    with serving(folder, tmp_path_factory.mktemp("server"), *flags, *budget, real=True) as served:
        served.wait_ready()
        yield served


@pytest.fixture
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def post(server: Served, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=60, verify=False)


@pytest.fixture(scope="module")
def expected(folder: Path) -> Any:
    """``expected(texts, size)``: transformers' last hidden state, cut and normalised."""
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))

    @torch.inference_mode()
    def of(texts: list[str], size: int | None = None) -> np.ndarray:
        rows = [
            model(torch.tensor([tokenizer(t)["input_ids"]])).last_hidden_state[0, -1, :size] for t in texts
        ]
        return F.normalize(torch.stack(rows), dim=-1).numpy()

    return of


def close(got: Any, want: np.ndarray) -> None:
    np.testing.assert_allclose(np.array(got), want, atol=1e-4)


def test_the_client_gets_transformers_numbers_in_the_order_of_inputs(
    client: openai.OpenAI, expected: Any
) -> None:
    """The client asks for base64 by itself. Empty and blank texts have the token that ends each text."""
    texts = TEXTS * 4  # more than there are seats
    answer = client.embeddings.create(model="m", input=texts)
    assert [item.index for item in answer.data] == list(range(len(texts)))
    close([item.embedding for item in answer.data], expected(texts))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > len(texts)
    plain = client.embeddings.create(model="m", input=texts[0], encoding_format="float")
    close([plain.data[0].embedding], expected(texts[:1]))


def test_base64_of_either_byte_order(server: Served, expected: Any) -> None:
    want = expected(TEXTS[:1])
    for order, kind in (("little", "<f4"), ("big", ">f4")):
        body = {"input": TEXTS[0], "encoding_format": "base64", "endianness": order}
        data = post(server, "/v1/embeddings", **body).json()["data"]
        close([np.frombuffer(base64.b64decode(data[0]["embedding"]), kind)], want)


KINDS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def unpacked(data: bytes, kind: str, order: str) -> np.ndarray:
    """As a client of vLLM reads it."""
    size = KINDS[kind].itemsize
    bits = np.frombuffer(data, f"{'>' if order == 'big' else '<'}u{size}").astype(f"=u{size}")
    return torch.from_numpy(bits).view(KINDS[kind]).float().numpy()


@pytest.mark.parametrize("order", ["native", "little", "big"])
@pytest.mark.parametrize("kind", KINDS)
def test_vectors_as_bytes(server: Served, expected: Any, kind: str, order: str) -> None:
    """vLLM's encodings; vllm#6744: base64 of another type than the client reads had twice the numbers."""
    body: dict[str, Any] = {
        "input": TEXTS[:3],
        "embed_dtype": kind,
        "endianness": order,
        "request_id": "mine",
    }
    want = torch.tensor(expected(TEXTS[:3])).to(KINDS[kind]).float().numpy()
    answer = post(server, "/v1/embeddings", **body, encoding_format="bytes")
    assert answer.headers["content-type"] == "application/octet-stream"
    about = json.loads(answer.headers["metadata"])
    assert (about["id"], about["model"], about["usage"]["prompt_tokens"] > 3) == ("embd-mine", "m", True)
    assert about["data"][2] == {
        "index": 2,
        "embed_dtype": kind,
        "endianness": order,
        "shape": [48],
        "start": len(answer.content) // 3 * 2,
        "end": len(answer.content),
    }
    step = 0.3 if "fp8" in kind else 0.01  # a number may lie on the other side of a border between two
    for item, row in zip(about["data"], want, strict=True):
        got = unpacked(answer.content[item["start"] : item["end"]], kind, order)
        np.testing.assert_allclose(got, row, rtol=step, atol=1e-2)
    bare = post(server, "/v1/embeddings", **body, encoding_format="bytes_only")
    assert (bare.content, "metadata" in bare.headers) == (answer.content, False)
    told = post(server, "/v1/embeddings", **body, encoding_format="base64").json()["data"]
    assert b"".join(base64.b64decode(item["embedding"]) for item in told) == answer.content


def test_a_header_is_not_made_longer_than_clients_read(server: Served) -> None:
    body: dict[str, Any] = {"input": [[5]] * 400, "encoding_format": "bytes"}
    refused = post(server, "/v1/embeddings", **body).json()["error"]
    assert (refused["param"], "bytes_only" in refused["message"]) == ("encoding_format", True)
    bare = post(server, "/v1/embeddings", **body | {"encoding_format": "bytes_only"})
    assert len(bare.content) == 400 * 48 * 4


def test_a_chat_is_one_input(server: Served, expected: Any, folder: Path) -> None:
    """vLLM's chat embeddings: no words begin the answer unless that is asked for, and no special tokens are
    added to the template's."""
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "read"}]

    def of(**more: Any) -> list[float]:
        answer = post(server, "/v1/embeddings", messages=messages, **more)
        assert answer.status_code == 200, answer.text
        (item,) = answer.json()["data"]
        return item["embedding"]  # type: ignore[no-any-return]

    text = "[system] Be brief. [user] read"

    def ids(said: str) -> list[float]:
        tokens = tokenizer.encode(said, add_special_tokens=False)
        return post(server, "/v1/embeddings", input=tokens).json()["data"][0]["embedding"]  # type: ignore[no-any-return]

    close(of(), np.array(ids(text)))
    close(of(add_generation_prompt=True), np.array(ids(f"{text} [assistant]")))
    close(of(chat_template_kwargs={"loud": True}), np.array(ids(f"{text}!")))
    close([of(add_special_tokens=True)], expected([text]))
    close(of(truncate_prompt_tokens=5), np.array(ids(tokenizer.decode(tokenizer.encode(text)[:5]))))
    assert len(of(dimensions=8)) == 8


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": "a"}, None),
        ({"messages": []}, "messages"),
        ({"prompt_name": "query"}, "prompt_name"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"messages": [{"role": "alien", "content": "a"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x" * 999}]}, "messages"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    ],
)
def test_chats_that_are_refused(server: Served, change: dict[str, Any], param: str | None) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], **change}
    answer = post(server, "/v1/embeddings", **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    alone = post(server, "/v1/embeddings", input="a", chat_template_kwargs={})
    assert alone.json()["error"]["param"] == "chat_template_kwargs"
    nothing = {"add_generation_prompt": False, "continue_final_message": False, "tools": None}
    assert post(server, "/v1/embeddings", input="a", **nothing).status_code == 200


def test_the_header_of_a_model_with_any_name() -> None:
    """Headers are no UTF-8."""
    body = EmbeddingRequest.model_validate({"input": "a", "encoding_format": "bytes"})
    answer = embedding_answer([array("f", [1])], body, id_="embd-1", created=1, model="模型\n", tokens=1)
    assert json.loads(answer.headers["metadata"])["model"] == "模型\n"


def bare(value: Any) -> Any:
    """Without the time, and without what two runs may round in two ways."""
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items() if key != "created"}
    if isinstance(value, list):
        return [bare(item) for item in value]
    return round(value, 2) if isinstance(value, float) else value


def test_invocations_of_a_model_that_pools(server: Served) -> None:
    """SageMaker's one route; vllm#20758: a reranker's requests ended in a 500."""
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/embeddings", {"input": ["a", "b"], "request_id": "x"}),
        ("/v1/embeddings", {"messages": [{"role": "user", "content": "a"}], "request_id": "x"}),
        ("/rerank", {"query": "a", "documents": ["b", "c"], "request_id": "x"}),
        ("/score", {"text_1": "a", "text_2": "b", "request_id": "x"}),
        ("/score", {"queries": "a", "documents": "b", "request_id": "x"}),
        ("/rerank", {"query": "a"}),  # what is wrong is told as there
        ("/v1/embeddings", {"input": "a", "model": "other"}),
    ]
    for path, body in bodies:
        there, here = post(server, path, **body), post(server, "/invocations", **body)
        assert here.status_code == there.status_code
        want, got = there.json(), here.json()
        assert bare(got) == bare(want), path
    for wrong in ({"prompt": "a"}, {}, {"inputs": "a"}):
        refused = post(server, "/invocations", **wrong)
        assert refused.status_code == 400
        assert "one of input, messages, query" in refused.json()["error"]["message"]


def test_token_lists(client: openai.OpenAI) -> None:
    one = client.embeddings.create(model="m", input=[5, 6, 7]).data
    two = client.embeddings.create(model="m", input=[[9, 8], [5, 6, 7]]).data
    close(two[1].embedding, np.array(one[0].embedding))


def test_dimensions(client: openai.OpenAI, expected: Any) -> None:
    for size in (8, 16, 48):
        answer = client.embeddings.create(model="m", input=TEXTS[0], dimensions=size)
        close([answer.data[0].embedding], expected(TEXTS[:1], size))
    for size in (7, 49, 0, 10**30):
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            client.embeddings.create(model="m", input="a", dimensions=size)


def test_prompts_by_name(server: Served, expected: Any) -> None:
    body = {"input": ["a", "b"], "prompt_name": "query"}
    data = post(server, "/v1/embeddings", **body).json()["data"]
    close([item["embedding"] for item in data], expected([PROMPTS["query"] + text for text in "ab"]))
    refused = post(server, "/v1/embeddings", input="a", prompt_name="passage")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt_name")
    assert "'query', 'document'" in refused.json()["error"]["message"]
    assert post(server, "/v1/embeddings", input=[1, 2], prompt_name="query").status_code == 400


def test_truncation_keeps_the_beginning_and_the_token_at_the_end(server: Served) -> None:
    ids = post(server, "/tokenize", prompt=TEXTS[0]).json()["tokens"]
    want = post(server, "/v1/embeddings", input=ids[:3] + ids[-1:]).json()["data"][0]["embedding"]
    cut = post(server, "/v1/embeddings", input=TEXTS[0], truncate_prompt_tokens=4).json()
    close(cut["data"][0]["embedding"], np.array(want))
    assert cut["usage"]["prompt_tokens"] == 4
    long = "read " * 2000
    refused = post(server, "/v1/embeddings", input=long)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert (
        post(server, "/v1/embeddings", input=long, truncate_prompt_tokens=-1).json()["usage"]["prompt_tokens"]
        == 256
    )


@pytest.mark.parametrize(
    "body",
    [
        {"input": []},
        {"input": [[]]},
        {"input": [1, "a"]},
        {"input": [320]},
        {"input": [-1]},
        {"input": "a", "encoding_format": "int8"},
        {"input": "a", "embed_dtype": "int8"},
        {"input": "a", "endianness": "middle"},
        {"input": "a", "truncate_prompt_tokens": 0},
        {"input": "a", "normalize": True},
        {"input": ["a"] * 1025},
        {},
    ],
)
def test_what_cannot_be_is_refused(server: Served, body: dict[str, Any]) -> None:
    answer = post(server, "/v1/embeddings", **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_each_kind_of_model_says_what_it_does_not_do(
    client: openai.OpenAI, tmp_path: Path, server: Served
) -> None:
    with pytest.raises(openai.BadRequestError, match="generates no text: use /v1/embeddings"):
        client.completions.create(model="m", prompt="a", max_tokens=1)
    assert server.status("/ready") == 200
    assert client.models.list().data[0].id == "m"
    with serving(write_folder(tmp_path / "generates", byte_level()), tmp_path, fake={}) as generating:
        generating.wait_ready()
        for path, body in (
            ("/v1/embeddings", {"input": "a"}),
            ("/rerank", {"query": "a", "documents": ["b"]}),
            ("/score", {"text_1": "a", "text_2": "b"}),
        ):
            answer = post(generating, path, **body)
            assert answer.status_code == 400
            assert "generates text" in answer.json()["error"]["message"]


def test_metrics_count_embeddings(client: openai.OpenAI, server: Served) -> None:
    client.embeddings.create(model="m", input=["one", "two"])
    text = server.get("/metrics").text  # type: ignore[union-attr]
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    done = next(float(v) for k, v in values.items() if "request_success" in k and "stop" in k)
    assert done >= 2
    assert server.metric("vllm:generation_tokens_total") == 0
    assert server.metric("vllm:e2e_request_latency_seconds_count") == done
    assert server.metric("vllm:time_to_first_token_seconds_count") == 0


# Pairs


def ended(server: Served) -> dict[str, int]:
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    found = re.findall(r'vllm:request_success_total\{.*finished_reason="(\w+)".*\} (\d+)', text)
    return {reason: int(count) for reason, count in found}


def idle(server: Served) -> bool:
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "sheaf:blocks_live")
    return not any(map(server.metric, names))


def test_a_batch_is_larger_than_the_queue(server: Served, client: openai.OpenAI) -> None:
    """It came back with 429 by its own inputs, on a server that did nothing else."""
    many = [TEXTS[0]] * 40
    answer = client.embeddings.create(model="m", input=many, encoding_format="float")
    alone = client.embeddings.create(model="m", input=TEXTS[0], encoding_format="float")
    for row in answer.data:
        np.testing.assert_allclose(row.embedding, alone.data[0].embedding, atol=1e-4)


def test_a_client_that_goes_in_the_middle_of_a_batch_ends_it(server: Served) -> None:
    before = ended(server)
    body = json.dumps({"model": "m", "input": [[5, 6, 7] * 20] * 1000}).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as sent:
        sent.sendall(
            b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        wait_for(lambda: ended(server)["stop"] > before["stop"], "the first of them")
    wait_for(lambda: ended(server)["abort"] > before["abort"], "the rest is ended")
    wait_for(lambda: idle(server), "an idle engine")
    after = ended(server)
    assert after["abort"] - before["abort"] <= 5
    assert after["stop"] - before["stop"] < 1000
    assert post(server, "/v1/embeddings", model="m", input="read").status_code == 200


@pytest.mark.parametrize("place", ["body", "header"])
def test_a_batch_whose_time_is_up_is_a_504_and_leaves_nothing(server: Served, place: str) -> None:
    """As for text (vllm#16391): what is still in the engine ends, and so does what has not been added."""
    before = ended(server)
    body: dict[str, Any] = {"model": "m", "input": [[5, 6, 7] * 20] * 1000}
    headers = {} if place == "body" else {"X-Request-Timeout": "0.05"}
    if place == "body":
        body["timeout"] = 0.05
    answer = httpx.post(f"{server.url}/v1/embeddings", json=body, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout"), answer.text
    assert answer.json()["error"]["type"] == "timeout_error"
    wait_for(lambda: idle(server), "an idle engine")
    after = ended(server)
    assert after["timeout"] > before["timeout"]
    assert after["stop"] - before["stop"] < 1000
    assert post(server, "/v1/embeddings", model="m", input="read").status_code == 200


@pytest.mark.parametrize("seconds", ["soon", "0", "nan"])
def test_a_timeout_that_is_none_is_refused_before_anything_runs(server: Served, seconds: str) -> None:
    answer = httpx.post(
        f"{server.url}/v1/embeddings",
        json={"model": "m", "input": "read"},
        headers={"X-Request-Timeout": seconds},
        timeout=60,
    )
    assert answer.status_code == 400
    assert "X-Request-Timeout must be a number above 0" in answer.json()["error"]["message"]


def test_batches_that_do_not_fit_together_are_429_and_leave_nothing(server: Served) -> None:
    def batch(_: int) -> httpx.Response:
        return post(server, "/v1/embeddings", model="m", input=[[5, 6, 7] * 5] * 50)

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(batch, range(12)))
    assert {answer.status_code for answer in answers} <= {200, 429}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert all(answer.json()["error"]["code"] == "queue_full" for answer in refused)
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    wait_for(lambda: idle(server), "an idle engine")
    assert batch(0).status_code == 200


def test_an_embedding_model_scores_by_cosine(server: Served, expected: Any) -> None:
    documents = ["read", "A sheaf", "read", "\U0001f33e"]
    vectors = expected(["pages", *documents])
    want = vectors[1:] @ vectors[0]
    answer = post(server, "/score", queries="pages", documents=documents).json()
    assert [item["index"] for item in answer["data"]] == [0, 1, 2, 3]
    close([item["score"] for item in answer["data"]], want)
    paired = post(server, "/v1/score", text_1=documents, text_2=documents).json()["data"]
    close([item["score"] for item in paired], np.ones(4))
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        ranked = post(server, path, query="pages", documents=documents).json()["results"]
        scores = [item["relevance_score"] for item in ranked]
        assert scores == sorted(scores, reverse=True)
        close([want[item["index"]] for item in ranked], np.array(scores))
        assert sorted(item["index"] for item in ranked) == [0, 1, 2, 3], "equal documents keep their places"
        assert all(item["document"]["text"] == documents[item["index"]] for item in ranked)


def test_the_best_few_without_their_texts(server: Served) -> None:
    documents = [{"text": "read"}, "A sheaf", {"text": "table"}]
    body = {"query": "pages", "documents": documents, "return_documents": False}
    every = post(server, "/rerank", **body).json()["results"]
    assert [set(item) for item in every] == [{"index", "relevance_score"}] * 3
    for top_n, count in ((2, 2), (99, 3), (0, 3)):
        best = post(server, "/rerank", **body, top_n=top_n).json()["results"]
        assert [item["index"] for item in best] == [item["index"] for item in every[:count]]
    for wrong in (
        {"query": "a", "documents": []},
        {"query": "a", "documents": [{"image": "b"}]},
        {"query": "a", "documents": ["b"], "top_n": -1},
        {"documents": ["b"]},
    ):
        assert post(server, "/rerank", **wrong).status_code == 400
    for wrong in (
        {"text_1": ["a", "b"], "text_2": ["c"]},
        {"text_1": "a"},
        {"text_1": "a", "documents": "b"},
    ):
        assert post(server, "/score", **wrong).status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        # Of an embedding model's texts the wrong one was named, and the type of a union as a field.
        ("/rerank", {"query": "a", "documents": ["b", [], "c"]}, "documents.1", "must be a valid string or"),
        ("/rerank", {"query": "a", "documents": [{"image": "b"}]}, "documents.0.text", "Field required"),
        ("/score", {"text_1": "a", "text_2": 5}, "text_2", "must be a valid string or a valid list"),
        ("/score", {"queries": "a", "items": ["b", 5]}, "items.1", "valid string"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_2", "2 text_1 need as many, got 1"),
        ("/rerank", {"query": "a", "documents": ["b", "x" * 999]}, "documents", "documents 1 has 1000"),
        ("/rerank", {"query": "x" * 999, "documents": ["b"]}, "query", "query 0 has 1000"),
        ("/v1/embeddings", {"input": ["a", "b", "x" * 999]}, "input", "input 2 has 1000"),
        ("/v1/embeddings", {"input": ["a", "x" * 99_999]}, "input", "input 1 has at least"),
        ("/v1/embeddings", {"input": [[5], [5] * 999]}, "input", "input 1 has 999"),
    ],
)
def test_what_is_wrong_with_a_pair_is_named(
    server: Served, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    error = post(server, path, **body).json()["error"]
    assert error["param"] == param, error
    assert words in error["message"]


def test_documents_as_other_rerankers_take_them(server: Served) -> None:
    """vllm#12376: Jina's and Cohere's documents are objects with more in them than the text."""
    answer = post(server, "/rerank", query="a", documents=["read", "b"], request_id="mine").json()
    plain = answer["results"]
    assert answer["id"] == "rerank-mine"
    more = [{"text": "read", "title": "t", "id": 7}, {"text": "b", "metadata": {}}]
    assert post(server, "/rerank", query="a", documents=more).json()["results"] == plain


def test_a_score_head_with_a_template_for_pairs(tmp_path: Path) -> None:
    folder = write_scorer(tmp_path / "m")
    template = (
        "Q:{{ (messages | selectattr('role', 'eq', 'query') | first).content }}"
        " D:{{ (messages | selectattr('role', 'eq', 'document') | first).content }}"
    )
    (folder / "chat_template.jinja").write_text(template)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    documents = ["read", "A {sheaf} of pages", ""]
    with torch.inference_mode():
        ids = [tokenizer(f"Q:pages D:{text}")["input_ids"] for text in documents]
        want = torch.cat([model(torch.tensor([row])).logits for row in ids]).sigmoid()[:, 0].numpy()
    with serving(folder, tmp_path, "--num-gpu-blocks-override", "200", real=True) as served:
        served.wait_ready()
        answer = post(served, "/score", queries="pages", documents=documents).json()
        close([item["score"] for item in answer["data"]], want)
        assert answer["usage"]["total_tokens"] == sum(map(len, ids))
        best = post(served, "/rerank", query="pages", documents=documents, top_n=1).json()["results"]
        assert best[0]["index"] == int(want.argmax())
        refused = post(served, "/v1/embeddings", input="a")
        assert (refused.status_code, "/rerank" in refused.text) == (400, True)


def test_pairs_are_joined_as_the_tokenizer_does_without_a_template(tmp_path: Path) -> None:
    folder = write_scorer(tmp_path / "m")
    append_end(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with torch.inference_mode():
        want = model(torch.tensor([tokenizer("pages", "read")["input_ids"]])).logits.sigmoid()[0].numpy()
    with serving(folder, tmp_path, "--num-gpu-blocks-override", "200", real=True) as served:
        served.wait_ready()
        data = post(served, "/score", text_1="pages", text_2="read").json()["data"]
    close([data[0]["score"]], want)
