"""The local cluster itself: plain Kubernetes works in it, and faults are what they say."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from localcluster.cluster import (
    ApiError,
    Cluster,
    CommandFailed,
    ExternalCluster,
    Faults,
    LocalCluster,
    Object,
    wait_until,
)
from localcluster.cluster.workloads import deployment, pod
from localcluster.obstacles import Obstacle

pytestmark = pytest.mark.cluster


WHO = """
import http.server, socket
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = socket.gethostname().encode()
        self.send_response(200); self.send_header('Content-Length', str(len(body))); self.end_headers()
        self.wfile.write(body)
print('serving', flush=True)
http.server.ThreadingHTTPServer(('', 8000), Handler).serve_forever()
"""


@pytest.fixture
def web(cluster: Cluster, namespace: str) -> str:
    """Two replicas behind a Service ``web`` that answer with their host name; returns the namespace."""
    probe = {"httpGet": {"port": 8000}, "periodSeconds": 1}
    ports = [{"containerPort": 8000}]
    cluster.api.apply(deployment("web", namespace, ["-c", WHO], 2, readinessProbe=probe, ports=ports))
    cluster.api.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": namespace},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
        }
    )
    cluster.wait_deployment("web", namespace)
    url = cluster.url("web", namespace)
    # The controller of EndpointSlices follows on its own time, slowest after a restart of the API server.
    wait_until(lambda: answers(url), 120, f"the Service answers at {url}")
    return namespace


def answers(url: str) -> str:
    """What a new connection is told, or an empty string where there is no answer."""
    try:
        return httpx.get(url, timeout=2, trust_env=False).text
    except httpx.HTTPError:
        return ""


def test_two_replicas_answer_through_their_cluster_ip(cluster: Cluster, web: str) -> None:
    pods = {p["metadata"]["name"] for p in cluster.api.list_objects("v1", "Pod", web)}
    assert len(pods) == 2
    url = cluster.url("web", web)
    seen: set[str] = set()
    wait_until(lambda: seen.add(answers(url)) or pods <= seen, 20, f"both pods answer at {url}")
    for name in pods:
        assert "serving" in cluster.logs(name, web)


@pytest.mark.parametrize(("code", "reason"), [(0, "Completed"), (3, "Error")])
def test_exit_codes_are_truthful(cluster: Cluster, namespace: str, code: int, reason: str) -> None:
    cluster.api.apply(pod("ends", namespace, ["-c", f"import sys; print('last words'); sys.exit({code})"]))

    def terminated(pods: list[Object]) -> Object | None:
        statuses = [s for p in pods for s in p["status"].get("containerStatuses", [])]
        return next((s["state"]["terminated"] for s in statuses if "terminated" in s["state"]), None)

    state = cluster.api.wait_for(
        "v1", "Pod", terminated, namespace=namespace, timeout=30, describe="the container has ended"
    )
    assert (state["exitCode"], state["reason"]) == (code, reason)
    assert cluster.logs("ends", namespace) == "last words\n"


def test_a_pod_reaches_the_api_server_with_its_own_rights_only(cluster: Cluster, namespace: str) -> None:
    ask = """
import json, ssl, urllib.request, urllib.error, os
folder = '/var/run/secrets/kubernetes.io/serviceaccount/'
token = open(folder + 'token').read()
tls = ssl.create_default_context(cafile=folder + 'ca.crt')
url = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}/api/v1/secrets"
request = urllib.request.Request(url, headers={'Authorization': 'Bearer ' + token})
try:
    urllib.request.urlopen(request, context=tls, timeout=10)
except urllib.error.HTTPError as error:
    print(error.code, json.load(error)['message'].split(' cannot')[0])
"""
    cluster.api.apply(pod("asks", namespace, ["-c", ask]))
    cluster.api.wait_for(
        "v1",
        "Pod",
        lambda pods: any(p["status"]["phase"] in ("Succeeded", "Failed") for p in pods),
        namespace=namespace,
        timeout=30,
        describe="the pod has asked",
    )
    user = f"system:serviceaccount:{namespace}:default"
    assert cluster.logs("asks", namespace) == f'403 secrets is forbidden: User "{user}"\n'


def test_kserve_defaults_and_validates(cluster: Cluster, namespace: str) -> None:
    """The webhooks are KServe's own: they refuse a name that makes no DNS label."""
    bad = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "dots.are.refused", "namespace": namespace},
        "spec": {"predictor": {"containers": [{"name": "kserve-container", "image": "sheaf/tool:1"}]}},
    }
    with pytest.raises(ApiError, match="denied the request"):
        cluster.api.apply(bad)


def test_pods_for_missing_devices_wait_until_the_node_has_them(
    local_cluster: Cluster, namespace: str
) -> None:
    resource = "example.com/gpu"
    wants = pod("gpu", namespace, ["-c", "pass"])
    wants["spec"]["containers"][0]["resources"] = {"limits": {resource: "1"}}
    local_cluster.api.apply(wants)

    def condition(pods: list[Object]) -> bool:
        found = [c for p in pods for c in p["status"].get("conditions") or [] if c["type"] == "PodScheduled"]
        return any(c["status"] == "False" and resource in c["message"] for c in found)

    local_cluster.api.wait_for(
        "v1", "Pod", condition, namespace=namespace, timeout=20, describe="the pod cannot be scheduled"
    )
    local_cluster.set_extended_resource(resource, 1)
    local_cluster.api.wait_for(
        "v1",
        "Pod",
        lambda pods: pods[0]["status"]["phase"] == "Succeeded",
        namespace=namespace,
        timeout=60,
        describe="the pod has run",
    )


def test_any_cluster_can_be_used_through_a_kubeconfig(local_cluster: LocalCluster, web: str) -> None:
    """The same cluster once more, now as somebody else's."""
    with ExternalCluster(local_cluster.kubeconfig) as external:
        pods = {p["metadata"]["name"] for p in external.api.list_objects("v1", "Pod", web)}
        url = external.url("web", web) + "/"
        wait_until(lambda: answers(url) in pods, 20, f"a pod answers at {url}")
        one = min(pods)
        assert answers(external.pod_url(one, 8000, web) + "/") == one
        assert "serving" in external.logs(one, web)
        with pytest.raises(Obstacle, match=f"create a PersistentVolumeClaim {web}/smollm2"):
            external.model_volume("smollm2", Path("/models"), web)


def test_a_killed_pod_is_restarted_by_the_kubelet(cluster: Cluster, faults: Faults, web: str) -> None:
    name = cluster.api.list_objects("v1", "Pod", web)[0]["metadata"]["name"]
    faults.kill_pod(name, web)

    def restarted(pods: list[Object]) -> bool:
        status = pods[0]["status"]["containerStatuses"][0]
        last = status.get("lastState", {}).get("terminated", {})
        return bool(status["restartCount"] == 1 and status["ready"] and last.get("exitCode") == 137)

    cluster.api.wait_for(
        "v1", "Pod", restarted, namespace=web, name=name, timeout=30, describe="the container is back"
    )


def test_a_cut_pod_is_unreachable_and_comes_back(cluster: Cluster, faults: Faults, web: str) -> None:
    name = cluster.api.list_objects("v1", "Pod", web)[0]["metadata"]["name"]
    url = cluster.pod_url(name, 8000, web)
    wait_until(lambda: answers(url) == name, 10, "the pod answers")
    with faults.cut_pod(name, web):
        assert answers(url) == ""
    wait_until(lambda: answers(url) == name, 10, "the pod answers again")


def test_a_frozen_pod_keeps_silent_until_it_thaws(cluster: Cluster, faults: Faults, web: str) -> None:
    name = cluster.api.list_objects("v1", "Pod", web)[0]["metadata"]["name"]
    url = cluster.pod_url(name, 8000, web)
    wait_until(lambda: answers(url) == name, 10, "the pod answers")
    with faults.frozen_pod(name, web):
        assert answers(url) == ""
    wait_until(lambda: answers(url) == name, 10, "the pod answers again")


def test_services_outlive_the_api_server(cluster: Cluster, faults: Faults, web: str) -> None:
    url = cluster.url("web", web)
    with faults.without("kube-apiserver"):
        with pytest.raises(CommandFailed):
            cluster.kubectl("get", "pods")
        assert all(answers(url) for _ in range(5))
    assert len(cluster.api.list_objects("v1", "Pod", web)) == 2


def test_pods_outlive_the_kubelet_and_kserve_restarts(cluster: Cluster, faults: Faults, web: str) -> None:
    before = {
        p["metadata"]["name"]: p["status"]["containerStatuses"]
        for p in cluster.api.list_objects("v1", "Pod", web)
    }
    with faults.without("kubelet"), faults.without("kserve"):
        assert answers(cluster.url("web", web))
    cluster.api.patch("apps/v1", "Deployment", "web", {"spec": {"replicas": 3}}, web)
    cluster.wait_deployment("web", web)  # only a living kubelet starts a third
    after = {
        p["metadata"]["name"]: p["status"]["containerStatuses"]
        for p in cluster.api.list_objects("v1", "Pod", web)
    }
    for name, statuses in before.items():
        assert after[name][0]["containerID"] == statuses[0]["containerID"]
