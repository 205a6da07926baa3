"""Every block in the pages: commands are run as far as no cluster is needed, resources are read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import chart
import doc_blocks
import pytest
import yaml
from doc_blocks import ROOT, Block, Command
from sheaf_operator.api.spec import LLMDeploymentSpec

BIN = Path(sys.executable).parent
BLOCKS = list(doc_blocks.blocks())
# kubectl's are run by e2e/tests/product/test_docs.py, on a real cluster.
PROGRAMS = {"helm", "kubectl", "make", "promtool", "sheaf"}
NOT_RUN = 1  # blocks; raise it only for a reason that no test can remove


def by_program(program: str) -> Any:
    return pytest.mark.parametrize("command", doc_blocks.commands(program), ids=str)


def test_every_block_says_what_it_is() -> None:
    known = {"sh", "text", "yaml", "json", "python", "promql", "http"}
    assert [b.place for b in BLOCKS if b.language not in known] == [], (
        f"mark these blocks with one of {known}"
    )


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    assert [b.place for b in BLOCKS if b.why_not and b.language != "sh"] == []
    left_out = {b.place: b.why_not for b in BLOCKS if b.why_not}
    assert len(left_out) == NOT_RUN, left_out


def test_every_command_has_a_test_that_runs_it() -> None:
    assert {command.words[0] for command in doc_blocks.commands()} <= PROGRAMS


# helm


def values_of(command: Command) -> dict[str, Any]:
    """The values that its --set and --set-json give, as Helm's own parser would for these simple ones."""
    values: dict[str, Any] = {}
    words = iter(command.words)
    for word in words:
        if word not in ("--set", "--set-json"):
            continue
        path, _, text = next(words).partition("=")
        value: Any = (
            text[1:-1].split(",") if text.startswith("{") else {"true": True, "false": False}.get(text, text)
        )
        value = json.loads(text) if word == "--set-json" else int(value) if str(value).isdigit() else value
        node = values
        *parents, last = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return values


@by_program("helm")
def test_helm_renders_what_is_asked_for(command: Command) -> None:
    if command.words[1] in ("upgrade", "install"):
        chart_named = [w for w in command.words if w.startswith(("oci://", "charts/"))]
        assert chart_named in (["oci://ghcr.io/sheaf-dev/sheaf/charts/sheaf"], ["charts/sheaf"])
        objects = chart.render(
            values_of(command), namespace=command.words[command.words.index("--namespace") + 1]
        )
        for obj in objects:
            chart.validate(obj)
        if "--version" in command.words:
            about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
            assert command.words[command.words.index("--version") + 1] == about["version"]
    else:
        assert command.words[1:3] in (("get", "values"), ("rollback", "sheaf"), ("uninstall", "sheaf"))


# Programs that are here


@by_program("make")
def test_make_has_the_target(command: Command) -> None:
    done = subprocess.run(["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@by_program("sheaf")
def test_sheaf_knows_the_flags(command: Command) -> None:
    _, subcommand, *rest = command.words
    done = subprocess.run([BIN / "sheaf", subcommand, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for flag in (word.split("=")[0] for word in rest if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){flag}(?![\w-])", done.stdout), flag


@pytest.mark.skipif(
    not shutil.which("promtool"), reason="needs promtool, which Debian's package prometheus has"
)
@by_program("promtool")
def test_promtool(command: Command) -> None:
    done = subprocess.run(command.words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# Resources


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language in ("yaml", "json")], ids=lambda b: b.place
)
def test_resources_are_read_by_the_operator(block: Block) -> None:
    for document in yaml.safe_load_all(block.text):
        if isinstance(document, dict) and document.get("kind") == "LLMDeployment":
            LLMDeploymentSpec.model_validate(document["spec"])


# Links


@pytest.mark.parametrize("path", doc_blocks.pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        assert target.startswith("https://") or (path.parent / target).exists(), target


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"]({path.name})" in index, f"add {path.name} to docs/README.md"
