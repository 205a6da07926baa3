"""The public JSON Schema test suite as structured output: answers at temperature 1.5 judged by jsonschema.

    python benchmarks/schema_suite.py MODEL [--suite FOLDER] [--output benchmarks/results/schema_suite.json]

Each schema of the suite is either refused, with the keyword that is not held, or its answers are valid.
FOLDER holds the suite's JSON files; without it they are taken from jsonschema's own source package, which
carries them. An answer that its tokens did not suffice for is counted and not judged.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
from machine import commit
from sheaf_runtime import LLM, SamplingParams
from sheaf_runtime.grammar.errors import GrammarError
from sheaf_runtime.grammar.recipe import recipe_of
from sheaf_runtime.protocol.grammar import Grammar

DRAFT = "draft2020-12"
SEEDS, TOKENS, STREAMS = 3, 160, 64
PROMPT = "An example of such a value in JSON:\n"


def of_source_package(folder: Path) -> Path:
    """The suite's folder, out of the source package of the jsonschema that is installed."""
    wanted = f"jsonschema=={jsonschema.__version__}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "jsonschema"]
    subprocess.run([*command, "--dest", str(folder), wanted], check=True)
    (package,) = folder.glob("*.tar.gz")
    with tarfile.open(package) as source:
        source.extractall(folder, filter="data")
    (tests,) = folder.glob(f"*/json/tests/{DRAFT}")
    return tests


def schemas(folder: Path) -> list[tuple[str, Any]]:
    """Where each stands, and the schema; those that need other documents are left out."""
    return [
        (f"{file.stem}: {case['description']}", case["schema"])
        for file in sorted(folder.glob("*.json"))
        for case in json.loads(file.read_text())
        if "http://localhost:1234" not in json.dumps(case["schema"])
    ]


def refusal(grammar: Grammar) -> str | None:
    """The words in which the schema is refused, without their place in it and without a reference's name."""
    try:
        recipe_of(grammar)
    except GrammarError as error:
        words = re.sub(r"^#\S*: ", "", str(error))
        return re.sub(r"^'.*' is not within", "a reference is not within", words)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--suite", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        suite = schemas(options.suite or of_source_package(Path(scratch)))
    refused: collections.Counter[str] = collections.Counter()
    held: list[tuple[str, Any, Grammar]] = []
    for where, schema in suite:
        grammar = Grammar(kind="json_schema", text=json.dumps(schema))
        if words := refusal(grammar):
            refused[words] += 1
        else:
            held.append((where, schema, grammar))
    wrong, unfinished, valid = [], 0, 0
    with LLM(options.model, max_num_seqs=STREAMS, max_model_len=1024) as llm:
        jobs = [(item, seed) for item in held for seed in range(SEEDS)]
        params = [
            SamplingParams(max_tokens=TOKENS, temperature=1.5, seed=seed, grammar=grammar)
            for (_, _, grammar), seed in jobs
        ]
        answers = llm.generate([PROMPT] * len(jobs), params)
    for ((where, schema, _), _), answer in zip(jobs, answers, strict=True):
        if answer.finish_reason != "stop":
            unfinished += 1
            continue
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        judge = jsonschema.Draft202012Validator(schema, format_checker=checker)
        try:
            judge.validate(json.loads(answer.text))
            valid += 1
        except (ValueError, jsonschema.ValidationError) as error:
            wrong.append({"schema": where, "answer": answer.text, "why": str(error).splitlines()[0]})
    report = {
        "commit": commit(),
        "suite": DRAFT,
        "schemas": len(suite),
        "held": len(held),
        "answers_valid": valid,
        "answers_unfinished": unfinished,
        "answers_wrong": wrong,
        "refused": dict(refused.most_common()),
    }
    print(json.dumps(report, indent=1, ensure_ascii=False))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    if wrong:
        sys.exit(f"{len(wrong)} answers do not fit their schema")


if __name__ == "__main__":
    main()
