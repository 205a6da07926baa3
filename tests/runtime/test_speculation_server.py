"""Several tokens a step, over HTTP: streams, counts and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from serving import Served, serving, wait_for

CONFIG = '{"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 2, "prompt_lookup_min": 1}'
PROMPT = "the pages of a sheaf, the pages of a sheaf, the pages of a sheaf, the pages"


@pytest.fixture(scope="module")
def served(tiny_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    flags = ("--served-model-name", "tiny", "--num-gpu-blocks-override", "200", "--lame-duck", "0.2")
    out = tmp_path_factory.mktemp("out")
    with serving(tiny_llama(), out, *flags, "--speculative-config", CONFIG, real=True) as server:
        server.wait_ready()
        yield server


def test_streams_have_the_tokens_and_counts_of_whole_answers(served: Served) -> None:
    asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 150, "temperature": 0}
    asked["extra_body"] = {"ignore_eos": True}
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
        whole = client.completions.create(**asked, logprobs=1)
        chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 150
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert len(logprobs.tokens) == 150
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 150
    # Reports are sent ten times a second, and with the step that leaves nothing to do.
    wait_for(lambda: served.metric("vllm:generation_tokens_total") == 300, "the last report")
    drafts = served.metric("vllm:spec_decode_num_draft_tokens_total")
    accepted = served.metric("vllm:spec_decode_num_accepted_tokens_total")
    assert drafts >= accepted >= 0
    assert served.metric("vllm:spec_decode_num_drafts_total") <= drafts
