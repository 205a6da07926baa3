"""The kubectl commands of the pages, on a real cluster with a model in it; what writes is a dry run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import doc_blocks
import pytest
import yaml
from doc_blocks import Command
from localcluster.cluster import Cluster
from sheaf_e2e.checkout import CHECKOUT
from sheaf_e2e.deployed import KIND, Deployed, manifest

pytestmark = pytest.mark.cluster
WRITES = {"apply", "create", "delete", "label", "annotate", "patch", "scale"}
EXAMPLES = {"NAME", "llama-8b", "smollm2"}  # of a model


@pytest.fixture(scope="module")
def model(operator: Cluster, tiny_model: Path) -> Iterator[Deployed]:
    with operator.new_namespace("docs") as namespace:
        operator.model_volume("tiny", tiny_model, namespace)
        deployed = Deployed(operator, manifest("documented", namespace, "pvc://tiny", 512))
        deployed.wait_ready(1)
        yield deployed


def adapted(command: Command, model: Deployed) -> list[str]:
    """The command with the names of what is here: once, at once, and without a change."""
    (pod,) = model.pod_names()
    names = dict.fromkeys(EXAMPLES, model.name) | {
        "NAMESPACE": model.namespace,
        "ml": model.namespace,
        "POD": pod,
    }
    example = re.compile(r"(?<![\w./-])(?:" + "|".join(names) + r")(?![\w./-])")
    follow = {"-w", "--watch"} if command.words[1] == "apply" else {"-w", "--watch", "-f"}
    words = [example.sub(lambda m: names[m[0]], word) for word in command.words[1:] if word not in follow]
    words = [re.sub(r"--timeout=\w+", "--timeout=20s", word) for word in words]
    if not {"-n", "--namespace", "--all-namespaces", "-A"} & set(words) and words[1:2] == ["llmd"]:
        words += ["-n", model.namespace]
    if words[0] == "wait" and "-n" not in words:
        words += ["-n", model.namespace]
        words[1] = f"llmd/{model.name}"
    if words[0] in WRITES:
        words.append("--dry-run=server")
    if ">" in words:
        words = words[: words.index(">")]
    return words


@pytest.mark.parametrize("command", doc_blocks.commands("kubectl"), ids=str)
def test_kubectl(model: Deployed, command: Command) -> None:
    cluster = model.cluster
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    env = {**os.environ, "KUBECONFIG": str(cluster.kubeconfig), "PATH": os.pathsep.join(folders)}
    words = [cluster.kubectl_program, *adapted(command, model)]
    done = subprocess.run(words, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{words}\n{done.stderr}"


def documents() -> list[doc_blocks.Block]:
    return [
        b
        for b in doc_blocks.blocks()
        if b.language == "yaml" and b.text.partition("kind: ")[2].startswith(KIND)
    ]


@pytest.mark.parametrize("block", documents(), ids=lambda b: b.place)
def test_the_api_server_takes_the_resources_of_the_pages(model: Deployed, block: doc_blocks.Block) -> None:
    for document in yaml.safe_load_all(block.text):
        document["metadata"]["namespace"] = model.namespace
        model.cluster.kubectl("create", "--dry-run=server", "-f", "-", input=yaml.safe_dump(document))
