"""Fixtures of the end-to-end tests: one cluster for the whole session, a namespace for each test."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from localcluster.cluster import Cluster, LocalCluster, Node
from model_folders import byte_level, write_folder
from sheaf_e2e.checkout import CHECKOUT, open_sheaf_cluster
from sheaf_e2e.demo_model import demo_model
from sheaf_e2e.operator_faults import OperatorFaults
from sheaf_e2e.release import install_operator
from tiny_llama import write_tiny_llama

LOGS = CHECKOUT / ".run" / "e2e-logs"


def log_folder() -> Path | None:
    """A new folder for this session's logs, the last few sessions' beside it; None where we may not write."""
    try:
        for old in sorted(LOGS.glob("*"))[:-4]:
            shutil.rmtree(old, ignore_errors=True)
        folder = LOGS / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        folder.mkdir(parents=True)
    except OSError:
        return None
    return folder


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Kubernetes with KServe: local, or that of $SHEAF_E2E_KUBECONFIG. Logs stay in .run/e2e-logs."""
    with open_sheaf_cluster(log_folder=log_folder()) as running:
        yield running


@pytest.fixture(scope="session")
def local_cluster(cluster: Cluster) -> LocalCluster:
    """The session's cluster where it is the local one; other clusters skip the test."""
    if not isinstance(cluster, LocalCluster):
        pytest.skip("needs the local cluster")
    return cluster


@pytest.fixture(scope="module")
def second_node(local_cluster: LocalCluster) -> Iterator[Node]:
    """A second node for this file's tests."""
    with local_cluster.second_node() as node:
        yield node


@pytest.fixture(scope="session")
def faults(local_cluster: LocalCluster) -> OperatorFaults:
    return OperatorFaults(local_cluster)


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Cluster:
    """The cluster with Sheaf's operator running in it, installed by the Helm chart."""
    install_operator(cluster)
    return cluster


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace named after the test; when the test fails, what was in it is printed."""
    prefix = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    with cluster.new_namespace(prefix) as name:
        before = request.session.testsfailed
        yield name
        if request.session.testsfailed > before:
            print(cluster.describe(name))


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The demo model, fetched once into the cache."""
    return demo_model()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of a few thousand random weights, 16384 tokens long: for what does not need sense."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = byte_level()
    write_folder(folder, tokenizer)
    write_tiny_llama(folder, vocab_size=tokenizer.get_vocab_size(), max_len=16384)
    folder.chmod(0o755)  # pods run as another user
    return folder


@pytest.fixture
def model_claim(cluster: Cluster, namespace: str, model_folder: Path) -> str:
    """The name of a PersistentVolumeClaim in the test's namespace that holds the demo model."""
    cluster.model_volume("smollm2", model_folder, namespace)
    return "smollm2"
