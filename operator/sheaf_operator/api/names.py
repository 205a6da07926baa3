"""Names, labels and annotations of everything the operator makes or reads."""

from __future__ import annotations

import hashlib
import json
from typing import Any

FIELD_MANAGER = "sheaf-operator"

LABEL_DEPLOYMENT = "sheaf.dev/deployment"  # on every child and its pods: the LLMDeployment's name
LABEL_REVISION = "sheaf.dev/revision"  # on pods and runtimes: the revision's hash
LABEL_CLASS = "sheaf.dev/operator-class"  # on an LLMDeployment: which of several operators looks after it
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
ANNOTATION_REVISION = "sheaf.dev/revision"  # on the ServingRuntime: the whole frozen revision
ANNOTATION_FALLBACK = "sheaf.dev/fallback"  # on it: the hash of the revision that served before this one
ANNOTATION_FAILURE = "sheaf.dev/failure"  # on it: why this revision was left, as JSON
ANNOTATION_ADAPTERS = "sheaf.dev/adapters"  # on a pod: the adapters it should have, as its runtime reads them
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"

KSERVE_STOP = "serving.kserve.io/stop"
CONTAINER = "kserve-container"  # KServe finds the model server by this name
PORT = 8000
MODEL_DIR = "/mnt/models"  # where KServe puts the model
ADAPTERS_DIR = "/etc/sheaf/adapters"  # where a pod sees which adapters it should have
ADAPTERS_VOLUME = "sheaf-adapters"
TLS_DIR = "/etc/sheaf/tls"  # where the certificate of spec.tls is mounted


def owner_labels(name: str) -> dict[str, str]:
    return {LABEL_DEPLOYMENT: name, LABEL_MANAGED_BY: FIELD_MANAGER}


def selector(name: str) -> str:
    """Label selector of the deployment's pods."""
    return f"{LABEL_DEPLOYMENT}={name}"


def runtime_name(name: str, revision: str) -> str:
    return f"{name}-{revision}"


def predictor_deployment(name: str) -> str:
    """KServe's name for the Deployment of an InferenceService."""
    return f"{name}-predictor"


def budget(name: str) -> str:
    """The PodDisruptionBudget's name."""
    return predictor_deployment(name)


HOST_LABEL = 63  # characters of one part of a host name (RFC 1123)


def predictor_host(name: str, namespace: str) -> str:
    """KServe's host name for the predictor, whatever the domain; it refuses what is longer than a label."""
    return f"{predictor_deployment(name)}-{namespace}"


def excess(name: str, namespace: str) -> int:
    """By how many characters a name is too long in its namespace."""
    return max(0, len(predictor_host(name, namespace)) - HOST_LABEL)


def revision_hash(content: dict[str, Any]) -> str:
    """Eight hex digits over what tells one revision from another."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def scheme(tls: bool) -> str:
    return "https" if tls else "http"


def url(name: str, namespace: str, domain: str, tls: bool) -> str:
    """KServe's Service, inside the cluster; its InferenceService URL may not resolve anywhere.

    KServe gives it port 80, whatever is spoken there.
    """
    host = f"{predictor_deployment(name)}.{namespace}.svc.{domain}"
    return f"{scheme(tls)}://{host}" + (":80" if tls else "")
