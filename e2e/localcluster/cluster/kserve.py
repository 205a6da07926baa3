"""The real KServe controller with its webhooks, outside of any pod, in Standard mode."""

from __future__ import annotations

import base64
import json
import shutil

import httpx

from localcluster.cluster.api import Api, Object
from localcluster.cluster.control_plane import Credentials
from localcluster.machine.launcher import Launcher
from localcluster.setup.binaries import Binaries

NAMESPACE = "kserve"
_WEBHOOK_PORT = 9443
_PROBE_PORT = 8081

_SIDECAR = {
    "image": "kserve/agent:v0.20.0",
    "cpuRequest": "100m",
    "cpuLimit": "1",
    "memoryRequest": "100Mi",
    "memoryLimit": "1Gi",
}
_CONFIG = {
    # Never injected here, but the pod webhook refuses every pod while these cannot be parsed.
    "agent": _SIDECAR,
    "logger": _SIDECAR,
    "batcher": _SIDECAR,
    "deploy": {"defaultDeploymentMode": "Standard"},
    "ingress": {
        "ingressGateway": "none/none",  # must not be empty, and is never used with creation disabled
        "disableIngressCreation": True,
        "disableIstioVirtualHost": True,
    },
    "storageInitializer": {
        "image": "kserve/storage-initializer:v0.20.0",
        "cpuRequest": "100m",
        "cpuLimit": "1",
        "memoryRequest": "100Mi",
        "memoryLimit": "1Gi",
    },
    "inferenceService": {},
}


def install(api: Api, binaries: Binaries) -> None:
    """Create KServe's resource definitions and configuration; wait until the definitions can be used."""
    definitions = json.loads((binaries.kserve / "crds.json").read_text())
    names = {definition["metadata"]["name"] for definition in definitions}
    for definition in definitions:
        definition.pop("status", None)
        definition["metadata"].pop("creationTimestamp", None)
        api.create(definition)
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    api.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "inferenceservice-config", "namespace": NAMESPACE},
            "data": {name: json.dumps(value) for name, value in _CONFIG.items()},
        }
    )

    def established(objects: list[Object]) -> bool:
        usable = {
            o["metadata"]["name"]
            for o in objects
            for c in o.get("status", {}).get("conditions") or []
            if c["type"] == "Established" and c["status"] == "True"
        }
        return names <= usable

    api.wait_for(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        established,
        timeout=30,
        describe="KServe's resource definitions are established",
    )


def start(launcher: Launcher, api: Api, binaries: Binaries, credentials: Credentials) -> None:
    """Start the controller, wait until it serves, and only then send admission requests to it."""
    temporary = launcher.folder / "kserve"
    certificates = temporary / "k8s-webhook-server" / "serving-certs"
    certificates.mkdir(parents=True)
    shutil.copy(credentials.ca, certificates / "tls.crt")
    shutil.copy(credentials.key, certificates / "tls.key")
    launcher.start(
        "kserve",
        [
            str(binaries.kserve / "manager"),
            f"--kubeconfig={credentials.kubeconfig('kserve')}",
            "--metrics-addr=0",
            f"--webhook-port={_WEBHOOK_PORT}",
            f"--health-probe-addr=127.0.0.1:{_PROBE_PORT}",
        ],
        env={"POD_NAMESPACE": NAMESPACE, "TMPDIR": str(temporary)},  # it looks for its certificate in TMPDIR
    )
    wait_ready(launcher)
    authority = base64.b64encode(credentials.ca.read_bytes()).decode()
    for configuration in json.loads((binaries.kserve / "webhooks.json").read_text()):
        configuration["metadata"].pop("creationTimestamp", None)
        for webhook in configuration["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {
                "url": f"https://localhost:{_WEBHOOK_PORT}{path}",
                "caBundle": authority,
            }
        api.apply(configuration)


def wait_ready(launcher: Launcher, timeout: float = 60) -> None:
    port = launcher.forward("127.0.0.1", _PROBE_PORT)

    def ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    launcher.wait_ready("kserve", ready, timeout)
