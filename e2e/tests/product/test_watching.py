"""What somebody who runs Sheaf looks at: `sheaf status`, and rules and dashboards in a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql
import pytest
import yaml
from dashboards import __main__ as dashboards
from localcluster.cluster import Cluster, wait_until
from sheaf_e2e.deployed import Deployed, manifest
from sheaf_e2e.operator_faults import OperatorFaults
from sheaf_e2e.prometheus import MISSING, RULES, prometheus

pytestmark = pytest.mark.cluster
NAME = "watched"


@pytest.fixture(scope="module")
def model(operator: Cluster, tiny_model: Path) -> Iterator[Deployed]:
    """One replica of a tiny model that has answered some requests."""
    with operator.new_namespace("watching") as namespace:
        operator.model_volume("tiny", tiny_model, namespace)
        flags = ("--max-num-seqs", "4", "--kv-cache-memory", "4MiB")
        deployed = Deployed(operator, manifest(NAME, namespace, "pvc://tiny", 512, *flags))
        deployed.wait_ready(1)
        yield deployed


def ask(deployed: Deployed) -> None:
    body = {"model": NAME, "prompt": [1, 2, 3, 4] * 8, "max_tokens": 4, "ignore_eos": True}
    httpx.post(f"{deployed.url}/v1/completions", json=body, timeout=60, trust_env=False).raise_for_status()


# sheaf status


def status(
    cluster: Cluster, *arguments: str, kubeconfig: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`kubectl sheaf status`, as a plugin of the cluster's own kubectl."""
    folders = [
        str(Path(sys.executable).parent),
        str(Path(cluster.kubectl_program).parent),
        os.environ["PATH"],
    ]
    env = {
        **os.environ,
        "PATH": os.pathsep.join(folders),
        "KUBECONFIG": str(kubeconfig or cluster.kubeconfig),
    }
    command = [cluster.kubectl_program, "sheaf", "status", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_status_of_a_model(model: Deployed) -> None:
    done = status(model.cluster, NAME, "-n", model.namespace)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{model.namespace}/{NAME}  Serving\n")
    (pod,) = model.pod_names()
    assert re.search(rf"^{pod}  Ready +0 +0 +0\.0 s  \[\.+\] +0%$", done.stdout, re.MULTILINE), done.stdout
    assert "\x1b" not in done.stdout


def test_status_as_json(model: Deployed) -> None:
    shown = json.loads(status(model.cluster, NAME, "-n", model.namespace, "-o", "json").stdout)
    assert (shown["name"], shown["ready"]) == (NAME, 1)
    assert shown["pods"][0]["state"] == "Ready"
    assert {c["type"] for c in shown["conditions"]} >= {"Ready", "Stalled"}


def test_status_needs_no_operator(model: Deployed, faults: OperatorFaults) -> None:
    with faults.without_operator():
        assert "Serving" in status(model.cluster, NAME, "-n", model.namespace).stdout


def as_account(cluster: Cluster, namespace: str, role: str | None, folder: Path) -> Path:
    """A kubeconfig of a ServiceAccount that holds this ClusterRole in its namespace, or nothing."""
    account = {"metadata": {"name": "reader", "namespace": namespace}}
    cluster.api.apply({"apiVersion": "v1", "kind": "ServiceAccount", **account})
    if role is not None:
        binding = ["rolebinding", "reader", f"--clusterrole={role}", f"--serviceaccount={namespace}:reader"]
        cluster.kubectl("create", *binding, "-n", namespace)
    token = cluster.kubectl("create", "token", "reader", "-n", namespace).strip()
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    for user in config["users"]:
        user["user"] = {"token": token}
    path = folder / f"{role}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_status_with_few_rights(model: Deployed, tmp_path: Path) -> None:
    """`view` shows all but the metrics, which need pods/proxy; without any right the error says so."""
    cluster, where = model.cluster, ("-n", model.namespace)
    refused = status(cluster, NAME, *where, kubeconfig=as_account(cluster, model.namespace, None, tmp_path))
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"sheaf status: you may not read LLMDeployments in {model.namespace}")
    seen = status(cluster, NAME, *where, kubeconfig=as_account(cluster, model.namespace, "view", tmp_path))
    assert seen.returncode == 0, seen.stderr
    assert "Serving" in seen.stdout
    assert "(Forbidden)" in seen.stdout


@pytest.mark.parametrize(
    ("arguments", "kubeconfig", "said"),
    [
        (("nothing",), None, "no LLMDeployment nothing in default"),
        (("m", "--context", "bogus"), None, "no answer from a cluster"),
        (("m",), Path("/nowhere"), "no answer from a cluster"),
    ],
)
def test_status_says_what_is_in_the_way(
    operator: Cluster, arguments: tuple[str, ...], kubeconfig: Path | None, said: str
) -> None:
    done = status(operator, *arguments, kubeconfig=kubeconfig)
    assert done.returncode == 1
    assert said in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("sheaf status: ")]) == 1


# Prometheus


def queries(namespace: str) -> Iterator[tuple[str, str]]:
    """(where, expression) of every rule and panel, with the variables of the dashboards filled in."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule.get("record") or rule["alert"], rule["expr"]
    variables = {"namespace": namespace, "name": NAME, "model": NAME, "pod": ".*", "__rate_interval": "10s"}
    for text in dashboards.files().values():
        for panel in json.loads(text)["panels"]:
            for target in panel.get("targets", []):
                yield panel["title"], re.sub(r"\$(\w+)", lambda m: variables[m[1]], target["expr"])


def quiet(expression: str) -> bool:
    """Whether it is meant to be empty while all is well: it compares, or asks for what is absent."""
    return bool(re.search(r"[<>]|==|absent", expression))


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_every_query_has_data(model: Deployed, tmp_path: Path) -> None:
    wanted: dict[str, Any] = {}
    for where, expression in queries(model.namespace):
        if not quiet(expression):
            wanted[f"{where}: {expression}"] = expression
        else:
            selectors = promql.selectors(promql.parse(expression))
            wanted |= {f"{where}: {selector.name}": selector.name for selector in selectors}
    with prometheus(model.cluster, tmp_path) as server:

        def empty() -> list[str]:
            ask(model)
            return [where for where, expression in wanted.items() if not server.query(expression)]

        try:
            wait_until(lambda: not empty(), 60, "every query has data")
        except TimeoutError:
            raise AssertionError(f"no data for {empty()}") from None
        firing = {a["metric"]["alertname"] for a in server.query('ALERTS{alertstate="firing"}')}
        assert firing == set()
        (wanted_count,) = server.query(f'namespace_name:sheaf_operator_replicas:leader{{name="{NAME}"}}')
        assert wanted_count["metric"]["namespace"] == model.namespace
