"""One LLMDeployment in a cluster as a test looks at it: its status, its replicas, its pods, its URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import httpx
from localcluster.cluster import Cluster, Object, wait_until

from sheaf_e2e.release import OPERATOR_LABELS, OPERATOR_NAMESPACE

API = "sheaf.dev/v1alpha1"
KIND = "LLMDeployment"
LABEL = "sheaf.dev/deployment"
OPERATOR_PORT = 8080


def manifest(
    name: str, namespace: str, uri: str, max_model_len: int, *extra_args: str, **spec: Any
) -> Object:
    """An LLMDeployment on CPU with a small request, so that several replicas fit a small machine."""
    return {
        "apiVersion": API,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"uri": uri},
            "engine": {"maxModelLen": max_model_len, "extraArgs": list(extra_args)},
            "accelerator": {"count": 0},
            "resources": {"cpu": "250m", "memory": "2Gi"},
            "termination": {"drainTimeoutSeconds": 30},
            **spec,
        },
    }


def scaling(status: Object) -> Object:
    """``status.autoscaling`` of an object's status, empty before the first decision."""
    found: Object = status.get("autoscaling", {})
    return found


def conditions(status: Object) -> dict[str, Object]:
    return {c["type"]: c for c in status.get("conditions", [])}


def is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


class Deployed:
    """Waits watch; each raises TimeoutError that says what was awaited, with the last status."""

    def __init__(self, cluster: Cluster, resource: Object) -> None:
        self.cluster = cluster
        self.name = str(resource["metadata"]["name"])
        self.namespace = str(resource["metadata"]["namespace"])
        cluster.api.apply(resource)

    # The resource itself

    def get(self) -> Object:
        return self.cluster.api.get(API, KIND, self.name, self.namespace)

    def patch(self, spec: Object) -> int:
        """Merge into the spec, as a user would; returns the new generation."""
        patched = self.cluster.api.patch(API, KIND, self.name, {"spec": spec}, self.namespace)
        return int(patched["metadata"]["generation"])

    def wait(self, judge: Callable[[Object], Any], describe: str, timeout: float = 60) -> Any:
        """What ``judge(status)`` says once that is truthy."""
        try:
            return self.cluster.api.wait_for(
                API,
                KIND,
                lambda objects: next((r for o in objects if (r := judge(o.get("status", {})))), None),
                namespace=self.namespace,
                name=self.name,
                timeout=timeout,
                describe=f"{self.name}: {describe}",
            )
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.cluster.describe(self.namespace)}") from None

    def wait_condition(
        self, kind: str, status: str, reason: str | None = None, timeout: float = 60
    ) -> Object:
        """The condition, once it has this status (and reason)."""

        def judge(seen: Object) -> Object | None:
            found = conditions(seen).get(kind, {})
            return found if found.get("status") == status and reason in (None, found["reason"]) else None

        told: Object = self.wait(judge, f"{kind}={status} {reason or ''}", timeout)
        return told

    def wait_limiting(self, limiting: str, timeout: float = 60) -> Object:
        """``status.autoscaling`` once it names ``limiting``."""
        found: Object = self.wait(
            lambda s: scaling(s).get("limiting") == limiting and scaling(s), f"limited by {limiting}", timeout
        )
        return found

    def wait_ready(self, replicas: int, timeout: float = 180) -> None:
        """Until this many pods serve and no other is wanted; pods that drain may still be there."""
        self.wait(
            lambda s: s.get("readyReplicas") == replicas == s.get("replicas"),
            f"{replicas} replicas serve",
            timeout,
        )

    # What belongs to it

    @property
    def url(self) -> str:
        """Of the Service, without ``/v1``. Known once KServe has made the Service."""
        service = f"{self.name}-predictor"
        wait_until(
            lambda: self.cluster.api.find("v1", "Service", service, self.namespace), 60, f"Service {service}"
        )
        return self.cluster.url(service, self.namespace)

    def deployment(self) -> Object | None:
        return self.cluster.api.find("apps/v1", "Deployment", f"{self.name}-predictor", self.namespace)

    def wait_deployment(self, judge: Callable[[Object], Any] = bool, timeout: float = 30) -> Object:
        """KServe's Deployment, once it is there and ``judge`` likes it."""
        found: Object = self.cluster.api.wait_for(
            "apps/v1",
            "Deployment",
            lambda objects: next((o for o in objects if judge(o)), None),
            namespace=self.namespace,
            name=f"{self.name}-predictor",
            timeout=timeout,
            describe=f"{self.name}: the Deployment is as it should be",
        )
        return found

    def wait_count(self, replicas: int, timeout: float = 30) -> None:
        """Until the Deployment is to have so many pods."""
        self.wait_deployment(lambda o: o["spec"]["replicas"] == replicas, timeout)

    def pods(self) -> list[Object]:
        """Pods that have not been told to go, oldest first."""
        labels = f"{LABEL}={self.name}"
        found = self.cluster.api.list_objects("v1", "Pod", self.namespace, labels=labels)
        live = [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]
        return sorted(live, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))

    def pod_names(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.pods()]

    def wait_pod(self, pod: str, judge: Callable[[Object], Any], describe: str, timeout: float = 120) -> Any:
        """What ``judge(pod)`` says once that is truthy."""
        return self.cluster.api.wait_for(
            "v1",
            "Pod",
            lambda pods: next((r for p in pods if (r := judge(p))), None),
            namespace=self.namespace,
            name=pod,
            timeout=timeout,
            describe=f"pod {pod}: {describe}",
        )

    def wait_gone(self, pod: str, timeout: float = 120) -> None:
        self.cluster.api.wait_for(
            "v1",
            "Pod",
            lambda pods: not pods,
            namespace=self.namespace,
            name=pod,
            timeout=timeout,
            describe=f"pod {pod} is gone",
        )

    # What the operator does about it

    def counted(self, metric: str) -> int:
        """The resource's series of one of the operator's counters, such as ``scrapes``."""
        labels = f'{{name="{self.name}",namespace="{self.namespace}"}}'
        pods = self.cluster.api.list_objects("v1", "Pod", OPERATOR_NAMESPACE, labels=OPERATOR_LABELS)
        name = next(pod["metadata"]["name"] for pod in pods if is_ready(pod))
        url = self.cluster.pod_url(name, OPERATOR_PORT, OPERATOR_NAMESPACE)
        text = httpx.get(f"{url}/metrics", trust_env=False).raise_for_status().text
        found = re.search(re.escape(f"sheaf_operator_{metric}_total{labels}") + r" ([\d.e+]+)", text)
        return int(float(found[1])) if found else 0

    def wait_counted(self, metric: str, more: int, timeout: float = 60) -> None:
        """Until the operator has counted so many more from now on."""
        self._wait_until_counted(metric, self.counted(metric) + more, timeout)

    def _wait_until_counted(self, metric: str, enough: int, timeout: float = 60) -> None:
        describe = f"the operator has counted {enough} {metric}"
        wait_until(lambda: self.counted(metric) >= enough, timeout, describe, every=0.1)

    def wait_looked_at(self) -> None:
        """Until the operator has read everything anew and done all that it will do about it.

        An annotation on a pod makes it look. Its second look begins when all is done that the first caused.
        """
        for _ in range(2):
            pod = wait_until(self.pod_names, 30, f"{self.name}: a pod")[0]
            seen = self.counted("observations")
            note = {"metadata": {"annotations": {"test/look": str(seen)}}}
            self.cluster.api.patch("v1", "Pod", pod, note, self.namespace)
            self._wait_until_counted("observations", seen + 1)

    def left(self) -> list[str]:
        """KIND/NAME of everything in the namespace that this LLMDeployment brought there."""
        kinds = {
            "apps/v1": ("Deployment", "ReplicaSet"),
            "v1": ("Pod", "Service"),
            "serving.kserve.io/v1beta1": ("InferenceService",),
            "serving.kserve.io/v1alpha1": ("ServingRuntime",),
            API: (KIND,),
            "autoscaling/v2": ("HorizontalPodAutoscaler",),
            "networking.k8s.io/v1": ("Ingress",),
        }
        return [
            f"{kind}/{obj['metadata']['name']}"
            for version, names in kinds.items()
            for kind in names
            for obj in self.cluster.api.list_objects(version, kind, self.namespace)
            if obj["metadata"]["name"].startswith(self.name)
        ]

    @contextmanager
    def replica_counts(self) -> Iterator[list[int]]:
        """Every value that the Deployment's ``spec.replicas`` takes inside the block, in order."""
        seen: list[int] = []
        stop, started = Event(), Event()

        def follow() -> None:
            while not stop.is_set():
                for objects in self.cluster.api.watch(
                    "apps/v1",
                    "Deployment",
                    self.namespace,
                    name=f"{self.name}-predictor",
                    timeout=1,
                ):
                    for count in (int(o["spec"]["replicas"]) for o in objects):
                        if seen[-1:] != [count]:
                            seen.append(count)
                    started.set()

        thread = Thread(target=follow, daemon=True)
        thread.start()
        started.wait(30)
        try:
            yield seen
        finally:
            stop.set()
            thread.join(30)


def evict(cluster: Cluster, pod: str, namespace: str) -> None:
    """What ``kubectl drain`` does to each pod."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": namespace},
    }
    cluster.api.request("POST", cluster.api.path("v1", "Pod", namespace, pod) + "/eviction", json=eviction)
