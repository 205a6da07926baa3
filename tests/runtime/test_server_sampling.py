"""Sampling parameters and log-probabilities through the official client, against transformers' logits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from serving import Served, serving
from transformers import AutoModelForCausalLM

PROMPT = [40, 41, 42, 77, 78, 40, 41, 90, 91, 92, 40, 41, 60, 61, 62, 63, 64, 65, 66, 67]
Adjust = Callable[[torch.Tensor, list[int]], torch.Tensor]
FLAGS = ("--served-model-name", "tiny", "--dtype", "float32", "--num-gpu-blocks-override", "300")
MORE = ("--max-num-batched-tokens", "8", "--max-num-seqs", "8", "--block-size", "4")  # prompts come in chunks


@pytest.fixture(scope="module")
def folder(tiny_llama: Callable[..., Path]) -> Path:
    return tiny_llama(max_position_embeddings=512)


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(folder, tmp_path_factory.mktemp("out"), *FLAGS, *MORE, real=True) as server:
        server.wait_ready()
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def logits(folder: Path) -> Callable[[list[int]], torch.Tensor]:
    """transformers' logits after each token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def compute(ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0]  # type: ignore[no-any-return]

    return compute


def complete(client: openai.OpenAI, prompt: Any = PROMPT, **fields: Any) -> Any:
    known = ("logprobs", "echo", "n", "stream", "logit_bias", "frequency_penalty", "presence_penalty", "seed")
    plain = {name: fields.pop(name) for name in known if name in fields}
    extra = {"ignore_eos": True, "return_token_ids": True} | fields
    plain |= {name: extra.pop(name) for name in ("max_tokens", "temperature") if name in extra}
    options = {"max_tokens": 12, "temperature": 0} | plain
    return client.completions.create(model="tiny", prompt=prompt, extra_body=extra, **options)


def greedy(logits: Callable[[list[int]], torch.Tensor], adjust: Adjust, count: int = 12) -> list[int]:
    output: list[int] = []
    while len(output) < count:
        output.append(int(adjust(logits(PROMPT + output)[-1], output).argmax()))
    return output


def test_log_probabilities_are_those_of_the_models_own_logits(
    client: openai.OpenAI, logits: Callable[[list[int]], torch.Tensor]
) -> None:
    """Whatever temperature, penalties and biases then make of them."""
    for fields in ({}, {"temperature": 1.5, "seed": 3, "presence_penalty": 2, "logit_bias": {"50": 3}}):
        (choice,) = complete(client, logprobs=4, return_tokens_as_token_ids=True, **fields).choices
        ids = choice.token_ids
        want = logits(PROMPT + ids)[len(PROMPT) - 1 : -1].log_softmax(-1)
        assert choice.prompt_token_ids == PROMPT
        for at, (row, id_) in enumerate(zip(want, ids, strict=True)):
            assert choice.logprobs.token_logprobs[at] == pytest.approx(row[id_].item(), abs=2e-3)
            tops = choice.logprobs.top_logprobs[at]
            best = row.topk(4).values.tolist()
            assert sorted(tops.values(), reverse=True)[:4] == pytest.approx(best, abs=2e-3)
            assert tops[choice.logprobs.tokens[at]] == choice.logprobs.token_logprobs[at]
        assert choice.logprobs.text_offset[0] == 0


@pytest.mark.parametrize("stop", [None, ["zz"]])
def test_a_stream_says_the_same(client: openai.OpenAI, stop: list[str] | None) -> None:
    plain = complete(client, logprobs=2, stop=stop).choices[0]
    joined: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    text, ids = "", []
    for chunk in complete(client, logprobs=2, stop=stop, stream=True):
        for choice in chunk.choices:
            text += choice.text
            ids += choice.token_ids
            for name, values in joined.items():
                values += getattr(choice.logprobs, name)
    assert (text, ids) == (plain.text, plain.token_ids)
    assert joined == {name: getattr(plain.logprobs, name) for name in joined}


def test_chat_log_probabilities(client: openai.OpenAI) -> None:
    body: Any = {"model": "tiny", "messages": [{"role": "user", "content": "pages"}], "max_tokens": 8}
    body |= {"temperature": 0, "logprobs": True, "top_logprobs": 3}

    def extra(salt: str) -> dict[str, Any]:  # a prompt from the cache is computed in other pieces
        return {"ignore_eos": True, "cache_salt": salt}

    (choice,) = client.chat.completions.create(extra_body=extra("a"), **body).choices
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert len(content) == 8
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token  # greedy
        assert entry.top_logprobs[0].logprob == entry.logprob
    whole = b"".join(bytes(entry.bytes or []) for entry in content)
    assert whole.decode("utf-8", "replace") == choice.message.content
    streamed = [
        entry
        for chunk in client.chat.completions.create(stream=True, extra_body=extra("b"), **body)
        for part in chunk.choices
        if part.logprobs is not None
        for entry in part.logprobs.content or []
    ]
    assert [e.model_dump() for e in streamed] == [e.model_dump() for e in content]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_scoring_a_prompt(
    client: openai.OpenAI, logits: Callable[[list[int]], torch.Tensor], max_tokens: int
) -> None:
    """As lm-eval asks, also where the prompt is in the prefix cache."""
    want = logits(PROMPT).log_softmax(-1)
    for _ in range(2):
        answer = complete(client, echo=True, logprobs=2, max_tokens=max_tokens)
        (choice,) = answer.choices
        values = choice.logprobs.token_logprobs
        assert len(values) == len(PROMPT) + max_tokens
        assert values[0] is None
        assert choice.logprobs.top_logprobs[0] is None
        expected = [want[i, id_].item() for i, id_ in enumerate(PROMPT[1:])]
        assert values[1 : len(PROMPT)] == pytest.approx(expected, abs=2e-3)
        assert answer.usage.completion_tokens == max_tokens
        assert choice.finish_reason == "length"
    chunks = complete(client, echo=True, logprobs=2, max_tokens=max_tokens, stream=True)
    streamed = [chunk.choices[0] for chunk in chunks]
    assert [v for c in streamed for v in c.logprobs.token_logprobs] == values
    assert "".join(c.text for c in streamed) == choice.text


def test_prompt_logprobs(client: openai.OpenAI, logits: Callable[[list[int]], torch.Tensor]) -> None:
    want = logits(PROMPT).log_softmax(-1)
    scored = complete(client, prompt_logprobs=1).choices[0].prompt_logprobs
    assert scored[0] is None
    assert len(scored) == len(PROMPT)
    for at, id_ in enumerate(PROMPT[1:], 1):
        row = want[at - 1]
        own = scored[at][str(id_)]
        assert own["logprob"] == pytest.approx(row[id_].item(), abs=2e-3)
        assert own["rank"] == int((row > row[id_]).sum()) + 1
        assert str(int(row.argmax())) in scored[at]


def test_tokens_as_ids(client: openai.OpenAI) -> None:
    (choice,) = complete(client, logprobs=1, return_tokens_as_token_ids=True).choices
    assert choice.logprobs.tokens == [f"token_id:{id_}" for id_ in choice.token_ids]


def counted(ids: list[int]) -> torch.Tensor:
    return torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=320)


def repeated(value: torch.Tensor, output: list[int]) -> torch.Tensor:
    seen = counted(PROMPT + output) > 0
    return torch.where(seen, torch.where(value > 0, value / 1.4, value * 1.4), value)


ALLOWED = [5, 40, 41, 50, 51, 200]
PENALTIES: list[tuple[dict[str, Any], Adjust]] = [
    ({"frequency_penalty": 0.9}, lambda x, out: x - 0.9 * counted(out)),
    ({"presence_penalty": -1.5}, lambda x, out: x + 1.5 * (counted(out) > 0)),
    ({"repetition_penalty": 1.4}, repeated),
    (
        {"repetition_penalty": 1.4, "frequency_penalty": 2.0, "presence_penalty": 1.0},
        lambda x, out: repeated(x, out) - 2.0 * counted(out) - (counted(out) > 0).float(),
    ),
    (
        {"logit_bias": {"50": 8.0, "51": 7.5}, "frequency_penalty": 1.0},
        lambda x, out: x + 8.0 * (torch.arange(320) == 50) + 7.5 * (torch.arange(320) == 51) - counted(out),
    ),
    (
        {"allowed_token_ids": ALLOWED, "presence_penalty": 2.0},
        lambda x, out: (
            x.masked_fill(~torch.isin(torch.arange(320), torch.tensor(ALLOWED)), -torch.inf)
            - 2.0 * (counted(out) > 0).float()
        ),
    ),
]


@pytest.mark.parametrize(("fields", "adjust"), PENALTIES, ids=[str(sorted(f)) for f, _ in PENALTIES])
def test_penalties_and_biases(
    client: openai.OpenAI,
    logits: Callable[[list[int]], torch.Tensor],
    fields: dict[str, Any],
    adjust: Adjust,
) -> None:
    assert complete(client, **fields).choices[0].token_ids == greedy(logits, adjust)


def test_rows_that_ask_for_nothing_are_not_touched(served: Served, client: openai.OpenAI) -> None:
    alone = complete(client).choices[0].token_ids
    bodies: list[dict[str, Any]] = [
        {"frequency_penalty": 2, "logit_bias": {"7": 5}},
        {},
        {"repetition_penalty": 3},
        {},
    ]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda fields: complete(client, **fields).choices[0].token_ids, bodies * 2))
    assert answers[1] == answers[3] == answers[5] == alone
    assert answers[0] == answers[4] != alone


def test_bad_words_never_come_out(served: Served, client: openai.OpenAI) -> None:
    free = complete(client, max_tokens=24).choices[0]
    word = re.findall("[!-~]{2}", free.text)[0]
    assert len(httpx.post(f"{served.url}/tokenize", json={"prompt": word}).json()["tokens"]) > 1
    banned = complete(client, max_tokens=24, bad_words=[word]).choices[0]
    assert word not in banned.text
    assert banned.token_ids != free.token_ids


def test_min_p(client: openai.OpenAI, logits: Callable[[list[int]], torch.Tensor]) -> None:
    """With 1 only the likeliest is left, with 0.3 only those within that share of it."""
    best = complete(client).choices[0].token_ids
    assert complete(client, temperature=1.8, seed=1, min_p=1.0).choices[0].token_ids == best
    probs = logits(PROMPT)[-1].softmax(-1)
    kept = set((probs >= 0.3 * probs.max()).nonzero().flatten().tolist())
    draws = complete(client, temperature=1, min_p=0.3, n=40, max_tokens=1).choices
    drawn = {choice.token_ids[0] for choice in draws}
    assert drawn <= kept


def test_truncated_prompts_keep_their_end(client: openai.OpenAI) -> None:
    short = complete(client, truncate_prompt_tokens=6)
    assert short.usage.prompt_tokens == 6
    assert short.choices[0].token_ids == complete(client, PROMPT[-6:]).choices[0].token_ids
    long = complete(client, PROMPT * 40, truncate_prompt_tokens=-1, max_tokens=1)
    assert long.usage.prompt_tokens == 511


def test_what_leaves_no_token_ends_that_request_alone(served: Served, client: openai.OpenAI) -> None:
    """Only the end token is allowed, and it must not come yet."""
    body = {"prompt": PROMPT, "allowed_token_ids": [2], "min_tokens": 3, "max_tokens": 5}
    answer = httpx.post(f"{served.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 500
    assert answer.json()["choices"][0]["finish_reason"] == "error"
    assert "leaves no token" in answer.json()["error"]["message"]
    with pytest.raises(openai.InternalServerError, match="leaves no token"):
        client.completions.create(
            model="tiny", prompt=PROMPT, extra_body={"allowed_token_ids": [2], "min_tokens": 3}
        )
    stream = httpx.post(f"{served.url}/v1/completions", json=body | {"stream": True}, timeout=60).text
    assert '"finish_reason":"error"' in stream
    assert "leaves no token" in stream
    assert stream.endswith("data: [DONE]\n\n")
    assert len(complete(client).choices[0].token_ids) == 12
    assert served.metric("sheaf:blocks_live") == 0
