"""From a spec to Kubernetes objects. Pure: no clock, no I/O, the same input gives the same output."""

from __future__ import annotations

from typing import Literal

from sheaf_operator.api import names
from sheaf_operator.api.spec import API_VERSION, KIND, LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json
from sheaf_operator.desired import containers
from sheaf_operator.desired.containers import as_json, as_list
from sheaf_operator.desired.revision import Revision, pod_spec

GRACE_MARGIN_SECONDS = 30  # preStop, the lame-duck time and the exit itself, on top of the drain
Strategy = Literal["Surge", "GiveUpFirst", "Recreate"]


def _runtime_spec(name: str, spec: LLMDeploymentSpec, default_image: str) -> Json:
    return {
        "supportedModelFormats": [{"name": "sheaf", "version": "1", "autoSelect": False}],
        "multiModel": False,
        "containers": [containers.runtime_container(name, spec, spec.pod.image or default_image)],
        "volumes": containers.volumes(spec),
    }


def _spread(name: str, spec: LLMDeploymentSpec) -> list[Json]:
    default = {"matchLabels": {names.LABEL_DEPLOYMENT: name}}
    return [{"labelSelector": default, **item} for item in as_list(spec.pod.topology_spread_constraints)]


def _predictor(name: str, spec: LLMDeploymentSpec, revision: str) -> Json:
    pod = spec.pod
    annotations = dict(pod.annotations)
    if secret := spec.model.credentials_secret_ref:
        # Which of the two KServe reads depends on how it was installed (its config map names the key).
        annotations["serving.kserve.io/storageSecretName"] = secret.name
        annotations["serving.kserve.io/secretName"] = secret.name
    optional: Json = {
        "annotations": annotations,
        "nodeSelector": pod.node_selector,
        "tolerations": as_list(pod.tolerations),
        "affinity": pod.affinity and as_json(pod.affinity),
        "topologySpreadConstraints": _spread(name, spec),
        "serviceAccountName": pod.service_account_name,
        "imagePullSecrets": as_list(pod.image_pull_secrets),
        "priorityClassName": pod.priority_class_name,
        "runtimeClassName": pod.runtime_class_name,
        "initContainers": containers.further_containers(spec),
    }
    return {
        "labels": {**pod.labels, names.LABEL_REVISION: revision},
        "model": {
            "modelFormat": {"name": "sheaf", "version": "1"},
            "runtime": names.runtime_name(name, revision),
            "storageUri": spec.model.uri,
            "resources": containers.resources(spec),
        },
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
            **as_json(pod.security_context),
        },
        "terminationGracePeriodSeconds": spec.termination.drain_timeout_seconds + GRACE_MARGIN_SECONDS,
        **{key: value for key, value in optional.items() if value},
    }


def revision(name: str, spec: LLMDeploymentSpec, default_image: str) -> Revision:
    """Render what `spec` asks for; `default_image` is used where spec.pod.image is left out."""
    parts = pod_spec(spec)
    digest = names.revision_hash({**parts, "image": spec.pod.image or default_image})
    return Revision(
        hash=digest,
        spec=parts,
        runtime=_runtime_spec(name, spec, default_image),
        predictor=_predictor(name, spec, digest),
    )


def owner_reference(name: str, uid: str) -> Json:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": name,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def serving_runtime(
    name: str, namespace: str, uid: str, revision: Revision, notes: Json | None = None
) -> Json:
    """`notes` are annotations beside the record of the revision."""
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {
            "name": names.runtime_name(name, revision.hash),
            "namespace": namespace,
            "labels": {**names.owner_labels(name), names.LABEL_REVISION: revision.hash},
            "annotations": {names.ANNOTATION_REVISION: revision.annotation(), **(notes or {})},
            "ownerReferences": [owner_reference(name, uid)],
        },
        "spec": revision.runtime,
    }


# GiveUpFirst stops one old pod before its successor starts: no device beyond those in use is needed.
STRATEGIES: dict[Strategy, Json] = {
    "Surge": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
    "GiveUpFirst": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
    "Recreate": {"type": "Recreate"},
}


def inference_service(
    name: str, namespace: str, uid: str, revision: Revision, strategy: Strategy, suspend: bool
) -> Json:
    """Labels and annotations of an InferenceService reach the pods, so they hold nothing that changes."""
    annotations = {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "external",
        # Always written, so that a hand-set "true" is repaired; with it KServe deletes the Deployment.
        names.KSERVE_STOP: "true" if suspend else "false",
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": names.owner_labels(name),
            "annotations": annotations,
            "ownerReferences": [owner_reference(name, uid)],
        },
        "spec": {"predictor": {**revision.predictor, "deploymentStrategy": STRATEGIES[strategy]}},
    }
