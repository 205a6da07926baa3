"""Run each client against `sheaf serve` with the demo model, and write what held.

    PYTHONPATH=e2e:benchmarks python -m clients [NAME ...]      # writes e2e/clients/results.json if all run

A folder beside this file is a client: `requirements.txt` or `package.json` with its version, and a script
`with_NAME URL MODEL_FOLDER`, which prints a line with ✓ for what held and fails otherwise. Each has an
environment of its own in the cache folder, so that none of their packages is one of ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from local_server import Server
from localcluster.cache import build_once, cache_root
from sheaf_e2e.demo_model import GGUF, demo_model
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
FLAGS = ["--max-model-len", "2048", "--tool-call-parser", "hermes", "--dtype", "float32"]


def safetensors() -> Path:
    """The demo model as a folder that lm-eval reads as well."""

    def build(folder: Path) -> None:
        gguf: dict[str, Any] = {"gguf_file": GGUF.name, "local_files_only": True}
        model: Any = AutoModelForCausalLM.from_pretrained(demo_model(), dtype=torch.float32, **gguf)
        # The tensors are plain now, but save_pretrained refuses a model that remembers having been quantized.
        model.hf_quantizer = None
        del model.config.quantization_config
        tokenizer: Any = AutoTokenizer.from_pretrained(demo_model(), **gguf)
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return build_once(cache_root() / "clients" / "smollm2", build)


def script(client: Path) -> Path:
    (found,) = client.glob("with_*")
    return found


def python_client(client: Path) -> list[str]:
    def build(folder: Path) -> None:
        uv = str(Path(sys.executable).with_name("uv"))
        subprocess.run(
            [uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, folder], check=True
        )
        subprocess.run(
            [uv, "pip", "install", "--quiet", "--python", folder, "-r", client / "requirements.txt"],
            check=True,
        )

    environment = _environment(client, "requirements.txt", build)
    return [str(environment / "bin" / "python"), str(script(client))]


def node_client(client: Path) -> list[str]:
    """Its script lies beside its packages, where Node looks for them."""

    def build(folder: Path) -> None:
        shutil.copy(client / "package.json", folder)
        subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"],
            cwd=folder,
            check=True,
        )

    environment = _environment(client, "package.json", build)
    return ["node", shutil.copy(script(client), environment)]


def _environment(client: Path, pins: str, build: Callable[[Path], None]) -> Path:
    wanted = hashlib.sha256((client / pins).read_bytes()).hexdigest()[:12]
    return build_once(cache_root() / "clients" / f"{client.name}-{wanted}", build)


def main(names: list[str]) -> None:
    every = sorted(path.parent for path in HERE.glob("*/with_*"))
    results = {}
    with tempfile.TemporaryFile() as log, Server(safetensors(), FLAGS, log=log) as server:
        for client in every:
            if names and client.name not in names:
                continue
            python = (client / "requirements.txt").exists()
            command = python_client(client) if python else node_client(client)
            quiet = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
            done = subprocess.run(
                [*command, server.url, str(safetensors())],
                env={**os.environ, **quiet},
                stdout=subprocess.PIPE,
                text=True,
                check=False,
            )
            print(f"{client.name}\n{done.stdout}", end="", flush=True)
            if done.returncode:
                sys.exit(f"{client.name} failed")
            pins = client / ("requirements.txt" if python else "package.json")
            version = (
                pins.read_text().splitlines()[0] if python else json.loads(pins.read_text())["dependencies"]
            )
            held = [line.removeprefix("✓ ") for line in done.stdout.splitlines() if line.startswith("✓ ")]
            results[client.name] = {"version": version, "held": held}
    if not names:
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
