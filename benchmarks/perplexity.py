"""Perplexity of a real text on our backends and in transformers, in float32, bfloat16 and int8.

    python benchmarks/perplexity.py MODEL [--text FILE] [--output benchmarks/results/perplexity.json]

The text (the licence, unless told otherwise) is cut into windows of 1024 tokens, each scored from its second
token on. Bfloat16 is to be within 0.5 % of transformers' bfloat16, int8 within 1 % of their float32.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from machine import commit, processor, report
from sheaf_runtime.engine.llm import LLM
from sheaf_runtime.protocol.sampling import SamplingParams
from transformers import AutoModelForCausalLM, AutoTokenizer

WINDOW = 1024
BACKENDS = ("cpu", "torch")


def with_transformers(folder: Path, gguf: dict[str, str], windows: list[list[int]], dtype: str) -> float:
    """The mean negative log-likelihood of a token."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **gguf)
    total = 0.0
    with torch.inference_mode():
        for window in windows:
            ids = torch.tensor(window)
            logprobs = model(ids[None]).logits[0, :-1].float().log_softmax(-1)
            total -= logprobs.gather(1, ids[1:, None]).sum().item()
    return total / sum(len(window) - 1 for window in windows)


def with_ours(folder: Path, windows: list[list[int]], dtype: Any, backend: Any, **more: Any) -> float:
    asked = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    with LLM(
        str(folder), device="cpu", dtype=dtype, attention_backend=backend, kv_cache_memory=1 << 29, **more
    ) as llm:
        answers = llm.generate(windows, asked)
    logprobs = [one.logprob for a in answers for one in a.prompt_logprobs or [] if one is not None]
    return -math.fsum(logprobs) / len(logprobs)


def beside(ours: float, theirs: float) -> dict[str, float]:
    return {
        "perplexity": round(math.exp(ours), 4),
        "percent_off": round(100 * math.expm1(ours - theirs), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--text", type=Path, default=Path(__file__).parent.parent / "LICENSE")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    file = next(args.model.glob("*.gguf"), None)
    gguf = {} if file is None else {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(args.model, **gguf)
    ids = tokenizer(args.text.read_text()).input_ids
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids) - 1, WINDOW)]
    result: dict[str, Any] = {
        "machine": {"cpu": processor()},
        "commit": commit(),
        "text": args.text.name,
        "tokens": len(ids),
    }
    for dtype in ("float32", "bfloat16"):
        theirs = with_transformers(args.model, gguf, windows, dtype)
        ours = {backend: with_ours(args.model, windows, dtype, backend) for backend in BACKENDS}
        result[dtype] = {"transformers": round(math.exp(theirs), 4)} | {
            name: beside(nll, theirs) for name, nll in ours.items()
        }
        if dtype == "float32":
            int8 = with_ours(args.model, windows, dtype, "cpu", quantization="int8")
            result["int8"] = beside(int8, theirs)
    report(result, args.output, indent=2)


if __name__ == "__main__":
    main()
