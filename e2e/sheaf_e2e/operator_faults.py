"""What can happen to Sheaf's operator, beside all that can happen to a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from localcluster.cluster import Faults, Object

from sheaf_e2e.release import OPERATOR, OPERATOR_LABELS, OPERATOR_NAMESPACE


class OperatorFaults(Faults):
    def kill_operator(self) -> str:
        """Kill the operator's process; the kubelet will start it again. Returns the pod's name."""
        pod = self._operator_pods()[0]["metadata"]["name"]
        self.kill_pod(pod, OPERATOR_NAMESPACE)
        return str(pod)

    @contextmanager
    def without_operator(self, timeout: float = 60) -> Iterator[None]:
        """The operator is scaled to zero, and its pod gone, inside the block."""
        self._scale_operator(0)
        self.cluster.api.wait_for(
            "v1",
            "Pod",
            lambda pods: not pods,
            namespace=OPERATOR_NAMESPACE,
            labels=OPERATOR_LABELS,
            timeout=timeout,
            describe="the operator's pod is gone",
        )
        try:
            yield
        finally:
            self._scale_operator(None)
            self.cluster.wait_deployment(OPERATOR, OPERATOR_NAMESPACE, timeout)

    def _scale_operator(self, replicas: int | None) -> None:
        """None gives the field back, to its default of 1: who keeps it would be in Helm's way later."""
        self.cluster.api.apply(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": OPERATOR, "namespace": OPERATOR_NAMESPACE},
                "spec": {} if replicas is None else {"replicas": replicas},
            },
            field_manager="without-operator",
        )

    def _operator_pods(self) -> list[Object]:
        return self.cluster.api.list_objects("v1", "Pod", OPERATOR_NAMESPACE, labels=OPERATOR_LABELS)
