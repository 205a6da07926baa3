"""lm-eval: log-likelihoods and greedy answers over HTTP are those of its own transformers backend.

python with_lm_eval.py URL MODEL_FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TASKS = Path(__file__).parent / "tasks"
TOLERANCE = 1e-3  # of a sum of log-probabilities in float32


def evaluate(model: str, arguments: str, tasks: str, *more: str) -> dict[str, list[Any]]:
    """The answers to each task's documents, in their order."""
    with tempfile.TemporaryDirectory() as out:
        command = [str(Path(sys.executable).with_name("lm_eval")), "run", "--model", model, "--device", "cpu"]
        command += ["--model_args", arguments, "--tasks", tasks, "--include_path", str(TASKS)]
        command += ["--log_samples", "--output_path", out, *more]
        subprocess.run(command, check=True, cwd=TASKS, stdout=subprocess.DEVNULL)
        found = {}
        for task in tasks.split(","):
            (samples,) = Path(out).rglob(f"samples_{task}_*.jsonl")
            rows = sorted((json.loads(line) for line in samples.open()), key=lambda row: row["doc_id"])
            found[task] = [answer for row in rows for (answer,) in row["resps"]]
        return found


def main(url: str, folder: str) -> None:
    both = "sheaf_choose,sheaf_go_on"
    wanted = evaluate("hf", f"pretrained={folder},dtype=float32", both)
    for tokenizer in ("huggingface", "remote"):
        arguments = f"base_url={url}/v1/completions,model=m,tokenizer={folder},tokenizer_backend={tokenizer}"
        got = evaluate("local-completions", f"{arguments},num_concurrent=2,max_retries=1", both)
        for (score, greedy), (right, right_greedy) in zip(
            got["sheaf_choose"], wanted["sheaf_choose"], strict=True
        ):
            assert abs(float(score) - float(right)) < TOLERANCE, (score, right)
            assert greedy == right_greedy
        assert got["sheaf_go_on"] == wanted["sheaf_go_on"]
        print(f"✓ log-likelihoods and answers equal the hf backend's (tokenizer: {tokenizer})")
    arguments = f"base_url={url}/v1/chat/completions,model=m,max_retries=1"
    chat = evaluate("local-chat-completions", arguments, "sheaf_go_on", "--apply_chat_template")
    assert all(chat["sheaf_go_on"]), chat
    print("✓ chat completions answer every document")


if __name__ == "__main__":
    main(*sys.argv[1:])
