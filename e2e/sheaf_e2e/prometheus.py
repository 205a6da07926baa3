"""A real Prometheus that scrapes the cluster as the chart's monitors tell it to, with the chart's rules."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import yaml
from localcluster.cluster import Cluster, Object, wait_until

from sheaf_e2e.checkout import CHECKOUT
from sheaf_e2e.deployed import LABEL, OPERATOR_PORT, is_ready
from sheaf_e2e.release import OPERATOR, OPERATOR_LABELS, OPERATOR_NAMESPACE

RULES = CHECKOUT / "charts" / "sheaf" / "files" / "rules.yaml"
MODEL_PORT = 8000
MISSING = None if shutil.which("prometheus") else "needs prometheus on PATH (Debian: apt install prometheus)"


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[Object]:
        """The result's series. Raises httpx.HTTPStatusError with Prometheus' words."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, trust_env=False)
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        found: list[Object] = answer.json()["data"]["result"]
        return found


@contextmanager
def prometheus(cluster: Cluster, folder: Path) -> Iterator[Prometheus]:
    """Scrapes once a second what is Ready now; ended with the block."""
    config = folder / "prometheus.yaml"
    config.write_text(yaml.safe_dump(_config(cluster)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = [
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(["prometheus", *arguments], stdout=log, stderr=log)
    try:
        server = Prometheus(f"http://{address}")
        wait_until(lambda: _ready(server.url), 30, "Prometheus is ready")
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _config(cluster: Cluster) -> Object:
    """Labels and jobs as the Prometheus operator makes them of the ServiceMonitor and the PodMonitor."""
    operators = cluster.api.list_objects("v1", "Pod", OPERATOR_NAMESPACE, labels=OPERATOR_LABELS)
    models = cluster.api.list_objects("v1", "Pod", labels=LABEL)
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            _job(cluster, OPERATOR, operators, OPERATOR_PORT, honor=True),
            _job(cluster, "sheaf-models", models, MODEL_PORT, honor=False),
        ],
    }


def _job(cluster: Cluster, name: str, pods: list[Object], port: int, honor: bool) -> Object:
    targets = []
    for metadata in (pod["metadata"] for pod in pods if is_ready(pod)):
        url = urlsplit(cluster.pod_url(metadata["name"], port, metadata["namespace"]))
        labels = {"namespace": metadata["namespace"], "pod": metadata["name"]}
        targets.append({"targets": [url.netloc], "labels": labels})
    return {"job_name": name, "honor_labels": honor, "static_configs": targets}
