"""From a spec to Kubernetes objects. Pure: no clock, no I/O, the same input gives the same output."""

from __future__ import annotations

from typing import Any, Literal

from sheaf_operator.api import names, quantity
from sheaf_operator.api.fields import ApiModel
from sheaf_operator.api.spec import API_VERSION, KIND, LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json
from sheaf_operator.desired.revision import Revision, pod_spec

PRE_STOP_SECONDS = 5  # endpoints and proxies learn that the pod is going while it still serves
GRACE_MARGIN_SECONDS = 30  # preStop, the lame-duck time and the exit itself, on top of the drain
TMP_SIZE = "2Gi"
Strategy = Literal["Surge", "GiveUpFirst", "Recreate"]


def args(name: str, spec: LLMDeploymentSpec) -> list[str]:
    """Arguments of `sheaf serve`, which is the image's entry point: each engine field maps to one flag.

    The user's own come first: of a flag that is given twice the last one counts.
    """
    engine = spec.engine
    result = [names.MODEL_DIR, *engine.extra_args, "--port", str(names.PORT)]
    result += ["--served-model-name", spec.model.served_name or name]
    if engine.max_model_len is not None:
        result += ["--max-model-len", str(engine.max_model_len)]
    if engine.dtype != "auto":
        result += ["--dtype", engine.dtype]
    if spec.accelerator.count == 0:
        result += ["--device", "cpu"]
    if not engine.prefix_caching:
        result += ["--no-enable-prefix-caching"]
    return [*result, "--drain-timeout", str(spec.termination.drain_timeout_seconds)]


def _probe(path: str, **more: int) -> Json:
    return {"httpGet": {"path": path, "port": "http", "scheme": "HTTP"}, **more}


def _probes() -> Json:
    """Startup waits up to an hour for a large model; liveness forgives stalls of a small, busy machine."""
    return {
        "startupProbe": _probe("/health", periodSeconds=5, timeoutSeconds=5, failureThreshold=720),
        "readinessProbe": _probe("/ready", periodSeconds=2, timeoutSeconds=5, failureThreshold=3),
        "livenessProbe": _probe("/health", periodSeconds=10, timeoutSeconds=10, failureThreshold=6),
    }


def _environment(spec: LLMDeploymentSpec) -> list[Json]:
    own = [{"name": "HOME", "value": "/tmp"}]
    if spec.accelerator.count == 0:
        threads = quantity.compute_threads(spec.resources.cpu)
        own.append({"name": "OMP_NUM_THREADS", "value": str(threads)})
    return own + _dump(spec.pod.env)


def _resources(spec: LLMDeploymentSpec) -> Json:
    """KServe fills in whatever is left out here with its own small defaults, so all of it is said."""
    devices = {spec.accelerator.resource_name: str(spec.accelerator.count)} if spec.accelerator.count else {}
    cpu, memory = spec.resources.cpu, spec.resources.memory
    return {
        "requests": {"cpu": cpu, "memory": memory, **devices},
        "limits": {"cpu": str(quantity.whole(cpu)), "memory": memory, **devices},
    }


def _runtime_spec(name: str, spec: LLMDeploymentSpec, default_image: str) -> Json:
    container: Json = {
        "name": names.CONTAINER,
        "image": spec.pod.image or default_image,
        "args": args(name, spec),
        "env": _environment(spec),
        "ports": [{"name": "http", "containerPort": names.PORT, "protocol": "TCP"}],
        **_probes(),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
        # The last lines of the log become the reason that the user reads in the status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    return {
        "supportedModelFormats": [{"name": "sheaf", "version": "1", "autoSelect": False}],
        "multiModel": False,
        "containers": [container],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}},
        ],
    }


def _dump(items: list[Any]) -> list[Json]:
    return [_json(item) for item in items]


def _json(item: ApiModel) -> Json:
    return item.model_dump(by_alias=True, exclude_none=True)


def _spread(name: str, spec: LLMDeploymentSpec) -> list[Json]:
    default = {"matchLabels": {names.LABEL_DEPLOYMENT: name}}
    return [{"labelSelector": default, **item} for item in _dump(spec.pod.topology_spread_constraints)]


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
        "tolerations": _dump(pod.tolerations),
        "affinity": pod.affinity and _json(pod.affinity),
        "topologySpreadConstraints": _spread(name, spec),
        "serviceAccountName": pod.service_account_name,
        "imagePullSecrets": _dump(pod.image_pull_secrets),
        "priorityClassName": pod.priority_class_name,
        "runtimeClassName": pod.runtime_class_name,
    }
    return {
        "labels": {**pod.labels, names.LABEL_REVISION: revision},
        "model": {
            "modelFormat": {"name": "sheaf", "version": "1"},
            "runtime": names.runtime_name(name, revision),
            "storageUri": spec.model.uri,
            "resources": _resources(spec),
        },
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
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
