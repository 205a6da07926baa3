"""The containers of a pod, and the volumes they see. Pure."""

from __future__ import annotations

import math
from typing import Any

from sheaf_operator.api import names, quantity
from sheaf_operator.api.containers import Container
from sheaf_operator.api.fields import ApiModel
from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.observed import Json

PRE_STOP_SECONDS = 5  # endpoints and proxies learn that the pod is going while it still serves
TMP_SIZE = "2Gi"
STARTUP_PERIOD, LIVENESS_PERIOD = 5, 10
_ADAPTERS_FILE = "wanted"
# The kubelet writes the pod's annotation into a file, again whenever that changes.
_WANTED_ADAPTERS: Json = {
    "name": names.ADAPTERS_VOLUME,
    "downwardAPI": {
        "items": [
            {
                "path": _ADAPTERS_FILE,
                "fieldRef": {"fieldPath": f"metadata.annotations['{names.ANNOTATION_ADAPTERS}']"},
            }
        ]
    },
}
_FEW_RIGHTS: Json = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def as_json(item: ApiModel) -> Json:
    return item.model_dump(by_alias=True, exclude_none=True)


def as_list(items: list[Any]) -> list[Json]:
    return [as_json(item) for item in items]


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
    if engine.quantization != "none":
        result += ["--quantization", engine.quantization]
    for flag, value in (
        ("--target-inter-token-ms", engine.target_inter_token_ms),
        ("--target-ttft-ms", engine.target_ttft_ms),
        ("--max-waiting-requests", engine.max_waiting_requests),
        ("--max-waiting-tokens", engine.max_waiting_tokens),
    ):
        if value is not None:
            result += [flag, str(value)]
    if engine.max_loras is not None:
        result += ["--enable-lora", "--max-loras", str(engine.max_loras)]
        result += ["--adapters-file", f"{names.ADAPTERS_DIR}/{_ADAPTERS_FILE}"]
    if engine.max_lora_rank is not None:
        result += ["--max-lora-rank", str(engine.max_lora_rank)]
    if spec.accelerator.count == 0:
        result += ["--device", "cpu"]
    if not engine.prefix_caching:
        result += ["--no-enable-prefix-caching"]
    if spec.tls:
        result += ["--ssl-certfile", f"{names.TLS_DIR}/tls.crt", "--ssl-keyfile", f"{names.TLS_DIR}/tls.key"]
    return [*result, "--drain-timeout", str(spec.termination.drain_timeout_seconds)]


def runtime_container(name: str, spec: LLMDeploymentSpec, image: str) -> Json:
    wanted, lora = names.ADAPTERS_VOLUME, spec.engine.max_loras is not None
    return {
        "name": names.CONTAINER,
        "image": image,
        "args": args(name, spec),
        "env": _environment(spec),
        "ports": [{"name": _scheme(spec), "containerPort": names.PORT, "protocol": "TCP"}],
        **_probes(spec),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
        # The last lines of the log become the reason that the user reads in the status.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {**_FEW_RIGHTS, "readOnlyRootFilesystem": True},
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "tmp", "mountPath": "/tmp"},
            *([{"name": "tls", "mountPath": names.TLS_DIR, "readOnly": True}] if spec.tls else []),
            *([{"name": wanted, "mountPath": names.ADAPTERS_DIR, "readOnly": True}] if lora else []),
            *as_list(spec.pod.volume_mounts),
        ],
    }


def volumes(spec: LLMDeploymentSpec) -> list[Json]:
    shared = spec.resources.shared_memory
    tls = spec.tls and {"name": "tls", "secret": {"secretName": spec.tls.secret_name}}
    return [
        {"name": "shm", "emptyDir": {"medium": "Memory", **({"sizeLimit": shared} if shared else {})}},
        {"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}},
        *([tls] if tls else []),
        *([_WANTED_ADAPTERS] if spec.engine.max_loras is not None else []),
        *as_list(spec.pod.volumes),
    ]


def further_containers(spec: LLMDeploymentSpec) -> list[Json]:
    """Those that are started before the runtime. A sidecar is one that is not waited for; it ends last."""
    sidecars = [{**_further(container), "restartPolicy": "Always"} for container in spec.pod.sidecars]
    return [*[_further(container) for container in spec.pod.init_containers], *sidecars]


def _further(given: Container) -> Json:
    shown = {key: value for key, value in as_json(given).items() if value}
    cpu, memory = given.resources.cpu, given.resources.memory
    return {
        **shown,
        "resources": {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": _FEW_RIGHTS,
    }


def _scheme(spec: LLMDeploymentSpec) -> str:
    return names.scheme(spec.tls is not None)


def _probe(spec: LLMDeploymentSpec, path: str, **more: int) -> Json:
    scheme = _scheme(spec)
    return {"httpGet": {"path": path, "port": scheme, "scheme": scheme.upper()}, **more}


def _probes(spec: LLMDeploymentSpec) -> Json:
    """Startup waits for a large model; liveness forgives stalls of a small, busy machine."""
    patience = spec.pod.probes
    starting = math.ceil(patience.startup_seconds / STARTUP_PERIOD)
    living = math.ceil(patience.liveness_seconds / LIVENESS_PERIOD)
    every = {"timeoutSeconds": 5, "periodSeconds": STARTUP_PERIOD, "failureThreshold": starting}
    return {
        "startupProbe": _probe(spec, "/health", **every),
        "readinessProbe": _probe(spec, "/ready", periodSeconds=2, timeoutSeconds=5, failureThreshold=3),
        "livenessProbe": _probe(
            spec, "/health", periodSeconds=LIVENESS_PERIOD, timeoutSeconds=10, failureThreshold=living
        ),
    }


def _environment(spec: LLMDeploymentSpec) -> list[Json]:
    own = [{"name": "HOME", "value": "/tmp"}]
    if spec.accelerator.count == 0:
        threads = quantity.compute_threads(spec.resources.cpu)
        own.append({"name": "OMP_NUM_THREADS", "value": str(threads)})
    return own + as_list(spec.pod.env)


def resources(spec: LLMDeploymentSpec) -> Json:
    """KServe fills in whatever is left out here with its own small defaults, so all of it is said."""
    given = spec.resources
    devices = {spec.accelerator.resource_name: str(spec.accelerator.count)} if spec.accelerator.count else {}
    disk = {"ephemeral-storage": given.ephemeral_storage} if given.ephemeral_storage else {}
    limit = given.cpu_limit or str(quantity.whole(given.cpu))
    return {
        "requests": {"cpu": given.cpu, "memory": given.memory, **disk, **devices},
        "limits": {"cpu": limit, "memory": given.memory, **disk, **devices},
    }
