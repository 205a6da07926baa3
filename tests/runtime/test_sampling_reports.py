"""Inputs of bug reports about sampling and log-probabilities, each with its right answer.

Reports are named as repository#number; what is right comes from OpenAI's and vLLM's documents."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from model_folders import byte_fallback, byte_level
from serving import Served, serving
from sheaf_runtime.protocol.messages import TokenLogprobs
from sheaf_runtime.server.logprobs import LogprobsWriter, TextOffsets
from sheaf_runtime.text import OutputText, Tokenizer
from sheaf_runtime.text.detokenizer import Detokenizer
from sheaf_runtime.worker.logprobs import Logprobs, logprobs_of

PROMPT = [40, 41, 42, 77, 78, 40, 41, 90, 91, 92, 40, 41, 60, 61, 62, 63, 64, 65, 66, 67]
OTHER = [50, 51, 52]
CHAT = [{"role": "user", "content": "pages"}]
# Prompts come in chunks.
FLAGS = ("--dtype", "float32", "--num-gpu-blocks-override", "300", "--max-num-batched-tokens", "8")


@pytest.fixture(scope="module")
def served(tiny_llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tiny_llama(max_position_embeddings=512)
    out: Path = tmp_path_factory.mktemp("out")
    with serving(folder, out, *FLAGS, "--max-num-seqs", "8", "--block-size", "4", real=True) as server:
        server.wait_ready()
        yield server


def post(served: Served, **body: Any) -> httpx.Response:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    return httpx.post(served.url + path, json=body, timeout=60)


def complete(served: Served, prompt: Any = PROMPT, **fields: Any) -> Any:
    body = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "return_token_ids": True} | fields
    answer = post(served, prompt=prompt, **body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def choice(served: Served, prompt: Any = PROMPT, **fields: Any) -> Any:
    return complete(served, prompt, **fields)["choices"][0]


def chunks(served: Served, **body: Any) -> list[Any]:
    answer = post(served, stream=True, **body)
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_seed_holds_beside_others(served: Served) -> None:
    """vllm#51226: beside a request without a seed; vllm#21310, #1595: and again."""
    wanted = {"temperature": 1.0, "seed": 42}
    alone = choice(served, **wanted)["token_ids"]
    results: list[Any] = []
    beside = threading.Thread(target=lambda: results.append(complete(served, OTHER, n=4, temperature=1.0)))
    beside.start()
    assert choice(served, **wanted)["token_ids"] == alone
    beside.join()
    assert len(results[0]["choices"]) == 4
    # vllm's -1 draws one.
    drawn = {tuple(choice(served, temperature=1.8, seed=-1)["token_ids"]) for _ in range(3)}
    assert len(drawn) > 1


def test_n_with_a_seed_differs_and_repeats(served: Served) -> None:
    """vllm#16449, vllm#7808: n of one seed are different samples, the same ones each time."""
    first, second = (complete(served, n=3, temperature=1.5, seed=7)["choices"] for _ in range(2))
    assert [c["token_ids"] for c in first] == [c["token_ids"] for c in second]
    assert len({tuple(c["token_ids"]) for c in first}) == 3


def test_lists_of_prompts_are_in_order(served: Served) -> None:
    """openai-python#90, lmdeploy#2395, ik_llama.cpp#1303: by prompt, then by copy."""
    single = [choice(served, prompt, max_tokens=4)["token_ids"] for prompt in (PROMPT, OTHER)]
    choices = complete(served, [PROMPT, OTHER], n=2, max_tokens=4)["choices"]
    assert [c["index"] for c in choices] == [0, 1, 2, 3]
    assert [c["token_ids"] for c in choices] == [single[0], single[0], single[1], single[1]]


def test_penalties_of_prompts_from_the_cache(served: Served) -> None:
    """omlx#960, vllm-metal#69, TensorRT-LLM#5623: the prompt counts for repetition alone, cached or not."""
    for fields in ({"repetition_penalty": 1.5}, {"presence_penalty": 2}, {"frequency_penalty": 2}):
        cold = complete(served, cache_salt=str(fields), **fields)
        warm = complete(served, cache_salt=str(fields), **fields)
        assert cold["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        assert warm["choices"][0]["token_ids"] == cold["choices"][0]["token_ids"]
    free = choice(served, max_tokens=1)["token_ids"]
    assert (
        choice(served, [*PROMPT, *free], max_tokens=1, presence_penalty=2)["token_ids"]
        == (choice(served, [*PROMPT, *free], max_tokens=1)["token_ids"])
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"191222": -100, "9": 5}}, "logit_bias"),  # vllm#16529: ended the engine
        ({"allowed_token_ids": [999]}, "allowed_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"stop": ""}, "stop"),  # vllm#11089: an empty answer
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"logprobs": False}, "logprobs"),  # the chat's form; vllm#1992
        ({"truncate_prompt_tokens": 0}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_refused_by_name(served: Served, fields: dict[str, Any], param: str) -> None:
    answer = post(served, prompt=PROMPT, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert served.status("/health") == 200


def test_chats_refused_by_name(served: Served) -> None:
    """sglang#12589: 0 is not "no limit"; vllm#8942: of the two ways to end a prompt one."""
    assert post(served, messages=CHAT, max_tokens=0).json()["error"]["param"] == "max_tokens"
    said = [*CHAT, {"role": "assistant", "content": "A sheaf"}]
    both = {"continue_final_message": True, "add_generation_prompt": True}
    answer = post(served, messages=said, **both)
    assert answer.status_code == 400
    assert "continue_final_message" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content", ["", "A sheaf ", "pages"])
def test_continued_messages_end_the_prompt(served: Served, content: str) -> None:
    """dynamo#13841: also an empty one, and one whose text was said before; its blank at the end stays."""
    said = [*CHAT, {"role": "assistant", "content": content}]
    body = {"messages": said, "continue_final_message": True}
    ids = httpx.post(f"{served.url}/tokenize", json=body).json()["tokens"]
    text = httpx.post(f"{served.url}/detokenize", json={"tokens": ids}).json()["prompt"]
    assert text == f"<|im_start|>user\npages<|im_end|>\n<|im_start|>assistant\n{content}"


def test_nulls_ask_for_nothing(served: Served) -> None:
    """llama-gpt#113: OpenAI's fields may be null, max_tokens above all."""
    nulls = ("n", "stop", "seed", "top_p", "temperature", "presence_penalty", "logit_bias", "logprobs")
    body = dict.fromkeys((*nulls, "top_logprobs", "stream", "stream_options", "user", "max_tokens"))
    answer = post(served, messages=CHAT, cache_salt="a", ignore_eos=False, **body | {"max_tokens": 4})
    assert answer.status_code == 200, answer.text
    assert post(served, prompt=PROMPT, max_tokens=None, echo=None).status_code == 200


def test_the_edges_of_sampling(served: Served) -> None:
    """vllm#890, aici#19: tiny temperatures, with a ban; mlx-lm#388: top_k 1 with top_p; llama-cpp-python#220:
    top_k 0 keeps all; llama.cpp#3841: min_p 1 keeps the likeliest; meta-llama#1410: a tiny top_p."""
    best = choice(served)["token_ids"]
    for fields in (
        {"temperature": 1e-6},
        {"temperature": 3e-4, "logit_bias": {"9": -100}},
        {"temperature": 1.9, "top_k": 1, "top_p": 0.8},
        {"temperature": 1.9, "min_p": 1},
        {"temperature": 1.9, "top_p": 1e-9},
    ):
        assert choice(served, seed=1, **fields)["token_ids"] == best, fields
    kept = [choice(served, seed=3, temperature=2, top_k=k)["token_ids"] for k in (0, -1, 320, 10**9)]
    assert kept == [kept[0]] * 4
    forced = choice(served, logit_bias={"77": 100}, temperature=1, top_k=1, max_tokens=3)
    assert forced["token_ids"] == [77] * 3


def test_end_tokens_wait_for_min_tokens(served: Served) -> None:
    """TensorRT-LLM#4776: end tokens, stop tokens and stop strings alike."""
    free = choice(served, max_tokens=8)
    ids, text = free["token_ids"], free["text"]
    early = choice(served, stop_token_ids=[ids[0]], max_tokens=8)
    assert (early["token_ids"], early["stop_reason"], early["text"]) == (ids[:1], ids[0], "")
    late = choice(served, stop_token_ids=[ids[0]], min_tokens=5, max_tokens=8)
    assert ids[0] not in late["token_ids"][:5]
    assert len(choice(served, stop=text[:1], min_tokens=5, max_tokens=8)["token_ids"]) >= 5


def test_stop_strings_cut_tokens_text_and_logprobs_alike(served: Served) -> None:
    """TGI#1039: inside a token; TensorRT-LLM#18190, vllm#47616, dynamo#12562: log-probabilities of the same
    tokens; llama.cpp#9867: a beginning of a stop string at the end of a stream is text; vllm#36830."""
    free = choice(served, max_tokens=12, logprobs=1)
    text, names = free["text"], free["logprobs"]["tokens"]
    at = next(
        i for i in range(3, len(text) - 3) if text[i : i + 2].isascii() and text.find(text[i : i + 2]) == i
    )
    stop = text[at : at + 2]
    for include in (False, True):
        fields: dict[str, Any] = {"stop": [stop], "logprobs": 1, "include_stop_str_in_output": include}
        cut = choice(served, **fields)
        assert cut["text"] == text[: at + 2 * include]
        assert (cut["finish_reason"], cut["stop_reason"]) == ("stop", stop)
        count = len(cut["token_ids"])
        assert cut["token_ids"] == free["token_ids"][:count]
        assert cut["logprobs"]["tokens"] == names[:count]
        body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "return_token_ids": True, **fields}
        parts = [c["choices"][0] for c in chunks(served, ignore_eos=True, **body)]
        assert "".join(p["text"] for p in parts) == cut["text"]
        assert [i for p in parts for i in p["token_ids"]] == cut["token_ids"]
    waiting = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    parts = chunks(served, stop=[text[-2:] + "never"], **waiting)
    assert "".join(p["choices"][0]["text"] for p in parts) == text


def test_prompt_scores_from_the_cache_and_in_chunks(served: Served) -> None:
    """vllm#3251, #3914, #8268: a prompt is scored whole, cached or not, of any length; lm-eval#1903: with no
    token of output; vllm#2703, #47815: the first has no score, and offsets count the echoed text."""
    for prompt in (PROMPT, PROMPT * 2):
        runs = [choice(served, prompt, echo=True, logprobs=2, max_tokens=0) for _ in range(2)]
        for run in runs:
            scores = run["logprobs"]
            assert (scores["token_logprobs"][0], scores["top_logprobs"][0]) == (None, None)
            assert len(scores["token_logprobs"]) == len(prompt)
            assert all(value is not None for value in scores["token_logprobs"][1:])
        assert runs[0]["logprobs"]["tokens"] == runs[1]["logprobs"]["tokens"]
    plain = choice(served, echo=True, logprobs=1, max_tokens=6)
    body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    parts = [c["choices"][0] for c in chunks(served, echo=True, logprobs=1, **body)]
    streamed = [offset for p in parts for offset in p["logprobs"]["text_offset"]]
    assert streamed == plain["logprobs"]["text_offset"]
    as_ids = choice(served, echo=True, logprobs=1, max_tokens=6, return_tokens_as_token_ids=True)
    assert as_ids["logprobs"]["text_offset"] == plain["logprobs"]["text_offset"]  # vllm#19379


def test_how_many_logprobs(served: Served) -> None:
    """sglang#2301, dynamo#14510, vllm#5008: none beside the chosen one; lmdeploy#1548: as many as asked."""
    for top in (0, 5):
        answer = post(served, messages=CHAT, max_tokens=3, logprobs=True, top_logprobs=top, ignore_eos=True)
        content = answer.json()["choices"][0]["logprobs"]["content"]
        assert [len(entry["top_logprobs"]) for entry in content] == [top] * 3
    assert all(len(tops) == 1 for tops in choice(served, logprobs=0)["logprobs"]["top_logprobs"])
    assert all(5 <= len(tops) <= 6 for tops in choice(served, logprobs=5)["logprobs"]["top_logprobs"])
    off = post(served, messages=CHAT, max_tokens=3, logprobs=False).json()
    assert off["choices"][0]["logprobs"] is None


def test_usage_in_every_chunk(served: Served) -> None:
    """vllm#9357, #9028: cumulative, of all choices, not while the prompt is computed;
    vllm#29074: no ids lost."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": PROMPT, "max_tokens": 5, "temperature": 0, "ignore_eos": True, "n": 2}
    got = chunks(served, stream_options=options, return_token_ids=True, **body)
    counts = [c["usage"]["completion_tokens"] for c in got]
    assert counts == sorted(counts)
    assert (counts[0] >= 1, counts[-1]) == (True, 10)
    assert got[-1]["choices"] == []
    assert {c["usage"]["prompt_tokens"] for c in got} == {len(PROMPT)}
    assert sum(len(c["choices"][0]["token_ids"]) for c in got[:-1]) == 10


def test_truncation_leaves_room_for_the_answer(served: Served) -> None:
    """vllm#22635: -1 is all that fits, beside the tokens that are asked for; 1 is one."""
    for count in (1, 100):
        usage = complete(served, PROMPT * 40, truncate_prompt_tokens=-1, max_tokens=count)["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (512 - count, count)
    assert complete(served, truncate_prompt_tokens=1)["usage"]["prompt_tokens"] == 1
    assert complete(served, truncate_prompt_tokens=400)["usage"]["prompt_tokens"] == len(PROMPT)


def test_bad_words_after_a_blank(served: Served) -> None:
    """vllm#23886, TensorRT-LLM#15706: where that is another number of tokens too (" pages" is one token)."""

    def tokens(text: str) -> list[int]:
        ids: list[int] = httpx.post(f"{served.url}/tokenize", json={"prompt": text}).json()["tokens"]
        return ids

    bare, spaced = tokens("pages"), tokens(" pages")
    assert (len(bare), len(spaced)) != (1, 1)
    assert len(bare) != len(spaced)
    wanted = {"logit_bias": {str(id_): 50 for id_ in spaced}, "max_tokens": 8}
    assert " pages" in choice(served, **wanted)["text"]
    assert " pages" not in choice(served, bad_words=["pages"], **wanted)["text"]


def test_neither_infinity_nor_nan_in_json() -> None:
    """sglang#5984, aphrodite#183, mlx-omni-server#56: JSON has none of them; OpenAI writes -9999."""
    import torch

    logits = torch.tensor([[0.0, -torch.inf, -torch.inf, 1.0], [torch.nan] * 4])
    made: Logprobs = logprobs_of(logits, torch.tensor([1, 0]), 4)
    for entry in made.tolist([4, 4]):
        assert all(value >= -9999.0 for value in (entry.logprob, *entry.top_logprobs))


@pytest.mark.parametrize("skip", [True, False])
def test_the_first_blank_of_an_answer_stays(skip: bool) -> None:
    """lmdeploy#1743, transformers#22710, #28776: prompt and answer joined are the text of both."""
    tokenizer = Tokenizer(byte_fallback())
    prompt, ids = (
        tokenizer.encode("hello,", add_special_tokens=False),
        tokenizer.encode("the é 😀", add_special_tokens=False),
    )
    for before in (prompt, [1, *prompt], prompt * 40):
        text = OutputText(tokenizer, skip_special_tokens=skip, after=before)
        got = "".join(text.push([id_]) for id_ in ids) + text.push([], finished=True)
        head = tokenizer.decode(before, skip_special_tokens=skip)
        assert head + got == tokenizer.decode([*before, *ids], skip_special_tokens=skip)
        assert got == " the é 😀"


@pytest.mark.parametrize("made", [byte_level, byte_fallback], ids=lambda made: made.__name__)
def test_a_character_that_the_prompt_began(made: Any) -> None:
    """llama-cpp-python#372: it comes whole, with the answer's first bytes."""
    tokenizer = Tokenizer(made())
    ids = tokenizer.encode("a😀b", add_special_tokens=False)
    byte = len(ids) - 2 if made is byte_level else len(ids) - 3
    detokenizer = Detokenizer(tokenizer, after=ids[:byte])
    got = "".join(detokenizer.push([id_]) for id_ in ids[byte:]) + detokenizer.finish()
    assert got == "😀b"


def test_a_stop_string_that_is_a_special_token() -> None:
    """koboldcpp#791, vllm#792, gpt4all#3061: it stops though the text does not show it."""
    tokenizer = Tokenizer(byte_level())
    ids = [*tokenizer.encode("ab<|turn|>cd", add_special_tokens=False)]
    for skip, include, want in ((True, False, "ab"), (True, True, "ab<|turn|>"), (False, False, "ab")):
        text = OutputText(tokenizer, stop=["bz", "<|turn|>"], include_stop=include, skip_special_tokens=skip)
        assert "".join(text.push([id_]) for id_ in ids[:3]) == want
        assert (text.stop_string, text.num_tokens) == ("<|turn|>", 3)
    later = OutputText(tokenizer, stop=["<|turn|>"], min_tokens=3)
    assert later.push(ids, finished=True) == "abcd"


def test_parts_of_characters_have_names_of_their_own() -> None:
    """ollama#13497, vllm#27300: their bytes are told, and in an object one does not hide another."""
    tokenizer = Tokenizer(byte_level())
    ids = tokenizer.encode("a😀é", add_special_tokens=False)
    entries = [TokenLogprobs(id_, -1.0, 2, ids, [-0.5] * len(ids)) for id_ in ids]
    writer = LogprobsWriter(tokenizer, as_ids=False)
    offsets = TextOffsets(tokenizer, skipped=tokenizer.special_ids, opens=False)
    made = writer.completion(entries, offsets)
    assert all(len(tops) == len(set(ids)) for tops in made.top_logprobs if tops)
    assert made.tokens[0] == "a"
    assert made.tokens[-1] == "bytes:\\xa9"
    whole = b"".join(bytes(entry.bytes) for entry in writer.chat(entries).content)
    assert whole.decode() == "a😀é"
    # Each token begins where its character does.
    assert made.text_offset[0] == 0
    assert made.text_offset[-1] == 2
    assert set(made.text_offset[1:-2]) == {1}
