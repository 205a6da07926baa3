"""Volumes, init containers, sidecars, secrets and TLS of a model's pods, through KServe on a real kubelet."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from localcluster.cluster import ApiError, Cluster, Object, wait_until
from sheaf_e2e.deployed import Deployed, evict, manifest

pytestmark = pytest.mark.cluster
KEY = "a-key-that-nobody-else-may-read"
PROMPT = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
WRITE = "open('/data/template', 'w').write('The capital of {{ messages[0].content }} is')"
WATCH = (
    "import pathlib, time; print(pathlib.Path('/data/template').read_text(), flush=True); time.sleep(9999)"
)


def apply(cluster: Cluster, name: str, namespace: str, *args: str, **spec: Any) -> Deployed:
    small = {
        "cpu": "100m",
        "memory": "2Gi",
        "sharedMemory": "64Mi",
        "cpuLimit": 64,
    }
    common = {"resources": small, "termination": {"drainTimeoutSeconds": 5}, **spec}
    args = ("--kv-cache-memory", "64MiB", *args)
    return Deployed(cluster, manifest(name, namespace, "pvc://smollm2", 512, *args, **common))


def tool(name: str, code: str) -> Object:
    return {
        "name": name,
        "image": "sheaf/tool:1",
        "args": ["-c", code],
        "resources": {"cpu": "10m", "memory": "64Mi"},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }


def secret(cluster: Cluster, name: str, namespace: str, **data: str) -> None:
    metadata = {"name": name, "namespace": namespace}
    cluster.api.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})


def certificate(authority: trustme.CA, host: str) -> dict[str, str]:
    """As a Secret of type kubernetes.io/tls holds it."""
    leaf = authority.issue_cert(host)
    chain = "".join(part.bytes().decode() for part in leaf.cert_chain_pems)
    return {"tls.crt": chain, "tls.key": leaf.private_key_pem.bytes().decode()}


def containers(model: Deployed) -> list[tuple[str, int]]:
    """Each pod's container and how often it has been restarted."""
    statuses = [status for pod in model.pods() for status in pod["status"]["containerStatuses"]]
    return [(status["containerID"], status["restartCount"]) for status in statuses]


def test_what_a_pod_has_beside_the_runtime(operator: Cluster, namespace: str, model_claim: str) -> None:
    """The chat template comes from a file that an init container wrote, the API key from a Secret."""
    secret(operator, "api-key", namespace, key=KEY)
    extra = apply(
        operator,
        "extra",
        namespace,
        "--api-key=$(API_KEY)",
        "--chat-template",
        "/data/template",
        pod={
            "env": [{"name": "API_KEY", "valueFrom": {"secretKeyRef": {"name": "api-key", "key": "key"}}}],
            "volumes": [{"name": "data", "emptyDir": {}}],
            "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": True}],
            "initContainers": [tool("prepare", WRITE)],
            "sidecars": [tool("watch", WATCH)],
            "securityContext": {"fsGroup": 2000, "supplementalGroups": [3000]},
        },
    )
    extra.wait_condition("Ready", "True", "Serving", timeout=90)

    chat = {"model": "extra", "messages": [{"role": "user", "content": "France"}], "max_tokens": 4}
    url = extra.url + "/v1/chat/completions"
    refused = httpx.post(url, json=chat, timeout=60, trust_env=False)
    assert refused.status_code == 401
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(url, json={**chat, "temperature": 0}, headers=headers, timeout=60, trust_env=False)
    assert "Paris" in answer.json()["choices"][0]["message"]["content"], answer.text

    [pod] = extra.pods()
    statuses = {s["name"]: s for s in pod["status"]["initContainerStatuses"]}
    assert statuses["prepare"]["state"]["terminated"]["exitCode"] == 0
    assert statuses["watch"]["state"]["running"]
    assert "The capital of" in operator.logs(pod["metadata"]["name"], namespace, "-c", "watch")
    volumes = {v["name"]: v for v in pod["spec"]["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Mi"}
    main = next(c for c in pod["spec"]["containers"] if c["name"] == "kserve-container")
    assert main["resources"]["limits"] == {"cpu": "64", "memory": "2Gi"}
    assert pod["spec"]["securityContext"]["fsGroup"] == 2000

    # The key is in the Secret and in no other object.
    kinds = "llmd,inferenceservices,servingruntimes,deployments,replicasets,pods,events"
    assert KEY not in operator.kubectl("get", kinds, "-n", namespace, "-o", "json")
    # What KServe and the kubelet filled in is no drift: nothing is written again and again.
    before = json.loads(operator.kubectl("get", kinds.removesuffix(",events"), "-n", namespace, "-o", "json"))
    extra.wait_looked_at()
    after = json.loads(operator.kubectl("get", kinds.removesuffix(",events"), "-n", namespace, "-o", "json"))
    generations = [
        [(o["metadata"]["uid"], o["metadata"].get("generation")) for o in x["items"]] for x in (before, after)
    ]
    assert generations[0] == generations[1]


def test_tls_from_a_secret(operator: Cluster, namespace: str, model_claim: str) -> None:
    """Served, probed and scraped over HTTPS; the certificate is the one of the Secret, for the URL's name."""
    host = f"safe-predictor.{namespace}.svc.cluster.local"
    authority = trustme.CA()
    secret(operator, "safe-tls", namespace, **certificate(authority, host))
    safe = apply(operator, "safe", namespace, tls={"secretName": "safe-tls"})
    safe.wait_condition("Ready", "True", "Serving", timeout=90)
    safe.wait(lambda s: "capacity" in s, "capacity was measured")
    assert safe.get()["status"]["url"] == f"https://{host}:80"

    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    url = safe.url.replace("http://", "https://") + "/v1/completions"
    asked = {"method": "POST", "url": url, "json": {"model": "safe", **PROMPT}}
    with httpx.Client(verify=trust, trust_env=False, timeout=60) as client:

        def ask() -> str:
            request = client.build_request(**asked, extensions={"sni_hostname": host})
            return str(client.send(request).json()["choices"][0]["text"])

        assert "Paris" in ask()
        # Renewed: the kubelet replaces the files in the pod, new connections have the new certificate.
        pods = safe.pods()
        renewed = certificate(authority, host)
        secret(operator, "safe-tls", namespace, **renewed)
        address = httpx.URL(safe.url)
        leaf = renewed["tls.crt"].partition("-----END")[0]
        operator.kubectl("annotate", "pod", "-n", namespace, "--all", "test/renewed=yes")  # it looks at once

        def served() -> bool:
            return ssl.get_server_certificate((address.host, address.port or 80)).startswith(leaf)

        wait_until(served, 60, "the renewed certificate is served", every=0.2)
        assert "Paris" in ask()  # on the connection that has the old one
        safe.wait_counted("scrapes", 1)
        assert safe.counted("scrape_failures") == 0
    assert [p["status"]["containerStatuses"] for p in safe.pods()] == [
        p["status"]["containerStatuses"] for p in pods
    ]


def test_a_drain_takes_one_replica_at_a_time(operator: Cluster, namespace: str, tiny_model: Path) -> None:
    """The eviction API itself refuses the second, as long as the first one's successor does not serve."""
    operator.model_volume("smollm2", tiny_model, namespace)
    two = {"minReplicas": 2, "maxReplicas": 2}
    kept = apply(operator, "kept", namespace, autoscaling=two)
    kept.wait_ready(2)
    operator.api.wait_for(
        "policy/v1",
        "PodDisruptionBudget",
        lambda found: any(o.get("status", {}).get("disruptionsAllowed") == 1 for o in found),
        namespace=namespace,
        name="kept-predictor",
        timeout=30,
        describe="the budget allows one disruption",
    )
    first, second = kept.pod_names()
    evict(operator, first, namespace)
    with pytest.raises(ApiError, match="disruption budget"):
        evict(operator, second, namespace)
    kept.patch({"autoscaling": {"minReplicas": 1, "maxReplicas": 1}})
    operator.api.wait_for(
        "policy/v1",
        "PodDisruptionBudget",
        lambda found: not found,
        namespace=namespace,
        name="kept-predictor",
        timeout=60,
        describe="with a single replica there is no budget",
    )
