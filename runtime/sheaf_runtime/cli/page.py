"""docs/flags.md: every flag of every command, from the parsers themselves. Written by `make flags`."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from sheaf_runtime.flags.parser import Parser, default_of, help_of, usage_of
from sheaf_runtime.server.vllm_flags import ABSENT

PAGE = Path(__file__).resolve().parents[3] / "docs" / "flags.md"
COMMANDS = {
    "sheaf serve MODEL": "sheaf_runtime.server.options:parser",
    "sheaf chat": "sheaf_runtime.chat.options:parser",
    "sheaf bench serve": "sheaf_runtime.bench.options:parser",
}

ENVIRONMENT = {
    "SHEAF_API_KEY": "`chat`, `bench serve`: the key of the endpoint, before `OPENAI_API_KEY`",
    "HTTP_PROXY": "`chat`, `bench serve`: with `HTTPS_PROXY`, `NO_PROXY`; never for this machine",
    "SSL_CERT_FILE": "`chat`, `bench serve`: certificate authorities to trust",
    "NO_COLOR": "`chat`: no dim text",
    "OMP_NUM_THREADS": "`serve`: compute threads on CPU (default: the cores)",
    "CUDA_VISIBLE_DEVICES": "`serve`: which card, as everywhere",
    "TRITON_CACHE_DIR": "`serve`: compiled kernels (default: `~/.triton/cache`), writable on a GPU",
    "TRITON_INTERPRET": "`serve`: 1 runs the Triton kernels without a GPU, slowly, for tests",
    "HF_HOME": "`serve`: where models of the hub are kept (default: `~/.cache/huggingface`)",
    "HF_HUB_CACHE": "`serve`: the models alone, in place of `HF_HOME/hub`",
    "HF_TOKEN": "`serve`: for private and gated models",
    "HF_ENDPOINT": "`serve`: a mirror of the hub",
    "HF_HUB_OFFLINE": "`serve`: 1 uses what has been fetched and asks nobody",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "`serve --otlp-traces-endpoint`: grpc (default) or http/protobuf",
    "OTEL_SERVICE_NAME": "`serve --otlp-traces-endpoint`: the service of its traces (default: sheaf)",
    "TMPDIR": "`serve`: a writable folder for the socket between its two processes",
}

_HEAD = """# Flags and environment variables

Made from the parsers by `make flags`; `sheaf COMMAND --help` prints the same. Names and meaning are vLLM's
where it has them. Flags cannot be abbreviated, underscores in them count as dashes, and of a flag that is
given twice the last one counts. A flag that does not exist is refused in one line with the closest one that
does. Of a JSON object each key can be given alone, as in vLLM: `--hf-overrides.rope_scaling.factor 4.0`
changes what an object before it said, `--hf-overrides.architectures+ LlamaModel` adds an element to a list,
and a value that is no JSON is a text.
"""


def page() -> str:
    parts = [_HEAD]
    for command, place in COMMANDS.items():
        module, _, function = place.partition(":")
        parser: Parser = getattr(importlib.import_module(module), function)()
        parts.append(f"## {command}\n")
        for title, actions in parser.groups():
            rows = [row for action in actions if (row := _row(action))]
            if rows:
                parts += [f"**{title}**\n", "| flag | default | |", "|---|---|---|", *rows, ""]
    parts += ["## Environment\n", "| variable | |", "|---|---|"]
    parts += [f"| `{name}` | {text} |" for name, text in ENVIRONMENT.items()]
    parts += [
        "",
        "## vLLM's flags that are not here\n",
        "`sheaf serve` refuses each by name, with these words.\n",
    ]
    parts += ["| flag | |", "|---|---|", *_absent()]
    return "\n".join(parts) + "\n"


def _row(action: argparse.Action) -> str | None:
    if not action.option_strings or isinstance(action, argparse._HelpAction):
        return None
    text = help_of(action)
    default = default_of(action)
    if told := re.search(r" \(default: (.*)\)$", text):
        text, default = text[: told.start()], told[1]
    return f"| `{_cell(usage_of(action))}` | {_cell(default or '')} | {_cell(text)} |"


def _absent() -> Iterator[str]:
    """A row for each reason."""
    by_reason: dict[str, list[str]] = {}
    for flag, reason in ABSENT.items():
        by_reason.setdefault(reason, []).append(f"`{flag}`")
    for reason, flags in by_reason.items():
        yield f"| {', '.join(flags)} | {_cell(reason)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page())
