"""What schemas cost: 64 streams each with a schema beside 64 without, in one process, in turns.

    python benchmarks/structured.py MODEL [--output benchmarks/results/structured.json]

Every request generates the same number of tokens (end tokens end none), so that the two differ in nothing but
the masks. The first round of each is not counted: it compiles.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from machine import commit, processor
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.protocol.grammar import Grammar

STREAMS, TOKENS, ROUNDS = 64, 32, 3
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "[A-Z][a-z]{1,12}"},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2100},
        "kind": {"enum": ["city", "river", "mountain"]},
        "text": {"type": "string"},
    },
    "required": ["name", "year", "kind", "text"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    grammar = Grammar(kind="json_schema", text=json.dumps(SCHEMA))
    rates: dict[str, list[float]] = {"plain": [], "schema": []}
    with LLM(options.model, max_num_seqs=STREAMS, enable_prefix_caching=False) as llm:
        for round_ in range(ROUNDS + 1):
            for name, wanted in (("plain", None), ("schema", grammar)):
                params = [
                    SamplingParams(max_tokens=TOKENS, seed=i, ignore_eos=True, grammar=wanted)
                    for i in range(STREAMS)
                ]
                began = time.perf_counter()
                done = llm.generate([f"Place {i} is" for i in range(STREAMS)], params)
                took = time.perf_counter() - began
                assert all(len(one.token_ids) == TOKENS for one in done)
                if round_:
                    rates[name].append(sum(len(one.token_ids) for one in done) / took)
    median = {name: statistics.median(values) for name, values in rates.items()}
    report = {
        "machine": processor(),
        "commit": commit(),
        "model": Path(options.model).name,
        "streams": STREAMS,
        "tokens_each": TOKENS,
        "tokens_per_second": {name: [round(v, 1) for v in values] for name, values in rates.items()},
        "cost": round(1 - median["schema"] / median["plain"], 4),
    }
    print(json.dumps(report, indent=1))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
