"""What n-gram speculation brings and costs: the same requests without and with it, in turns, in one process.

    python benchmarks/speculation.py MODEL [--streams 1 4 16] [--rounds 5] [--output FILE]

*copy*: the answer repeats the prompt (a file that is written again, a passage that is quoted), greedy.
*chat*: questions, sampled with temperature 0.7 and a seed. Answers must be the same. Each ratio is that of
the times of a pair of runs next to each other; runs are in both orders. Streams measured before stay in FILE.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from machine import commit, processor, report
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.config import SpeculativeConfig

NGRAM = SpeculativeConfig(method="ngram", num_speculative_tokens=8, prompt_lookup_max=4, prompt_lookup_min=2)
TOKENS = 128
THINGS = ("order", "invoice", "ticket", "parcel", "account", "booking", "message", "report")
PLACES = ("Lisbon", "Oslo", "Quito", "Hanoi", "Perth", "Dakar", "Turin", "Osaka")
QUESTIONS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper.",
    "How do I keep basil alive in winter?",
    "Explain recursion to a child.",
    "What should I cook with rice, beans and one lemon?",
    "Give me advice for a first job interview.",
    "Describe a town on the moon.",
    "What makes a good friend?",
)


def _file(i: int) -> str:
    """Code about one thing, longer than the answer."""
    thing, limit = THINGS[i % len(THINGS)], 10 + 7 * i
    return f"""def load_{thing}s(path, limit={limit}):
    with open(path) as source:
        rows = [line.strip().split(",") for line in source]
    return [make_{thing}(row) for row in rows[:limit] if row]


def make_{thing}(row):
    name, price, count = row[0], float(row[1]), int(row[2])
    if count < 0:
        raise ValueError(f"{thing} {{name}} has a negative count")
    return {{"name": name, "price": price, "total": price * count}}


def total_of_{thing}s({thing}s):
    result = 0.0
    for {thing} in {thing}s:
        result += {thing}["total"]
    return round(result, 2)
"""


def _passage(i: int) -> str:
    place, thing = PLACES[i % len(PLACES)], THINGS[(i + 3) % len(THINGS)]
    return (
        f"The office in {place} opened in {1950 + i} with eleven people and a single telephone. In its first "
        f"winter every {thing} was written by hand and carried across the river by the night porter, a "
        f"former sailor who refused to use the bridge. When the flood came, {12 + i} crates of paper were "
        f"moved to the attic of a bakery, where they stayed until a new archive was ready in "
        f"{PLACES[(i + 1) % len(PLACES)]}. The baker asked for no rent, but he kept one letter as a souvenir "
        "and framed it above the oven, where visitors can still read it if they ask politely.\n"
    )


def copied(i: int) -> str:
    text = _file(i) if i % 2 == 0 else _passage(i)
    begin = " ".join(text.split(" ")[:4])
    return f"{text}\nThe same text once more, word for word:\n\n{begin}"


def chat(i: int) -> str:
    question = f"{QUESTIONS[i % len(QUESTIONS)]} Answer in {100 + i} words."
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


LOADS: dict[str, Any] = {
    "copy": (copied, {"temperature": 0.0}),
    "chat": (chat, {"temperature": 0.7}),
}


def timed(llm: LLM, load: str, streams: int) -> tuple[float, list[list[int]]]:
    prompt, how = LOADS[load]
    params = [SamplingParams(max_tokens=TOKENS, seed=i, **how) for i in range(streams)]
    prompts = [prompt(i) for i in range(streams)]
    began = time.perf_counter()
    done = llm.generate(prompts, params)
    return time.perf_counter() - began, [one.token_ids for one in done]


def measured(plain: LLM, drafting: LLM, load: str, streams: int, rounds: int) -> dict[str, Any]:
    for llm in (plain, drafting):
        timed(llm, load, streams)
    before = drafting.stats()
    ratios, rates, tokens = [], [], 0
    for round_ in range(rounds):
        order = (plain, drafting) if round_ % 2 == 0 else (drafting, plain)
        runs = {id(llm): timed(llm, load, streams) for llm in order}
        (off, expected), (on, got) = runs[id(plain)], runs[id(drafting)]
        assert got == expected, "drafts changed an answer"
        tokens = sum(map(len, got))
        ratios.append(off / on)
        rates.append((tokens / off, tokens / on))
    after = drafting.stats()
    drafts = after.draft_tokens - before.draft_tokens
    accepted = sum(after.accepted_at) - sum(before.accepted_at)
    return {
        "ratios": [round(ratio, 3) for ratio in ratios],
        "median_ratio": round(statistics.median(ratios), 3),
        "tokens_per_second": {
            "off": round(statistics.median(off for off, _ in rates), 1),
            "on": round(statistics.median(on for _, on in rates), 1),
        },
        "tokens": tokens,
        "drafts_a_run": round(drafts / rounds, 1),
        "accepted": round(accepted / drafts, 3) if drafts else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    engine: dict[str, Any] = {"dtype": "float32", "max_num_seqs": 16, "max_model_len": 1024}
    streams: dict[str, Any] = {}
    if options.output is not None and options.output.exists():
        streams = json.loads(options.output.read_text())["streams"]
    with (
        LLM(options.model, kv_cache_memory=1 << 30, **engine) as plain,
        LLM(options.model, kv_cache_memory=1 << 30, speculative_config=NGRAM, **engine) as drafting,
    ):
        for count in options.streams:
            streams[str(count)] = {
                load: measured(plain, drafting, load, count, options.rounds) for load in LOADS
            }
    result = {
        "machine": processor(),
        "commit": commit(),
        "model": Path(options.model).name,
        "speculative_config": {name: getattr(NGRAM, name) for name in NGRAM.__struct_fields__},
        "streams": dict(sorted(streams.items(), key=lambda item: int(item[0]))),
    }
    report(result, options.output)


if __name__ == "__main__":
    main()
