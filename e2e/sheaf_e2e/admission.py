"""A mutating webhook as a pod of the cluster, asked by its API server over HTTPS."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager

import trustme
from localcluster.cluster import Cluster, Object

from sheaf_e2e import admission_server

Additions = dict[str, dict[str, Object]]  # path → kind → what is merged into its objects
_KINDS = {
    "Pod": ("", "v1", "pods"),
    "Deployment": ("apps", "v1", "deployments"),
    "InferenceService": ("serving.kserve.io", "v1beta1", "inferenceservices"),
}


@contextmanager
def webhook(cluster: Cluster, namespace: str, additions: Additions) -> Iterator[str]:
    """The webhook's pod, serving inside the block. Nobody is sent to it yet: see ``admission``.

    Yields the certificate authority that admission is to trust, as the API server wants it.
    """
    authority = trustme.CA()
    leaf = authority.issue_cert(f"webhook.{namespace}.svc")
    chain = "".join(part.bytes().decode() for part in leaf.cert_chain_pems)
    data = {"tls.crt": chain, "tls.key": leaf.private_key_pem.bytes().decode()}
    labels = {"app": "webhook"}
    container = {
        "name": "webhook",
        "image": "sheaf/tool:1",
        "args": ["-I", admission_server.__file__, json.dumps(additions)],
        "readinessProbe": {"tcpSocket": {"port": admission_server.PORT}, "periodSeconds": 1},
        "volumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": True}],
    }
    pod = {
        "containers": [container],
        "terminationGracePeriodSeconds": 0,
        "volumes": [{"name": "tls", "secret": {"secretName": "webhook"}}],
    }
    spec = {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    metadata = {"name": "webhook", "namespace": namespace}
    ports = [{"port": 443, "targetPort": admission_server.PORT}]
    cluster.api.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data})
    cluster.api.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": labels, "ports": ports},
        }
    )
    cluster.api.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
    cluster.wait_deployment("webhook", namespace)
    yield base64.b64encode(authority.cert_pem.bytes()).decode()


@contextmanager
def admission(
    cluster: Cluster, namespace: str, authority: str, path: str, kinds: tuple[str, ...]
) -> Iterator[None]:
    """Inside the block, objects of these kinds in this namespace go through ``path`` of the webhook."""
    name = f"{namespace}{path.replace('/', '-')}"
    groups = [_KINDS[kind] for kind in kinds]
    rules = [
        {
            "apiGroups": [group],
            "apiVersions": [version],
            "resources": [plural],
            # Of a pod hardly anything may change once it is there.
            "operations": ["CREATE"] if plural == "pods" else ["CREATE", "UPDATE"],
        }
        for group, version, plural in groups
    ]
    service = {"name": "webhook", "namespace": namespace, "path": path}
    hook = {
        "name": "webhook.test.sheaf.dev",
        "clientConfig": {"service": service, "caBundle": authority},
        "rules": rules,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    configuration = ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration")
    cluster.api.apply(
        {
            "apiVersion": configuration[0],
            "kind": configuration[1],
            "metadata": {"name": name},
            "webhooks": [hook],
        }
    )
    try:
        yield
    finally:
        cluster.api.delete(*configuration, name)
