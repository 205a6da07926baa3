"""What a text of the cluster means: tables of messages as people met them. The ids say where."""

import kube_objects as k
import pytest
from sheaf_operator.api import names
from sheaf_operator.cluster.errors import ApiError, of_answer
from sheaf_operator.problems.crashes import of_crash
from sheaf_operator.problems.images import of_pull
from sheaf_operator.problems.problem import Lack
from sheaf_operator.problems.refused import of_refusal
from sheaf_operator.problems.write import of_write

CRASHES = {
    "vllm#17187": (
        '  File "/opt/vllm/pynvml.py", line 2420\nOSError: libnvidia-ml.so.1: cannot open shared object file:'
        " No such file or directory\nRuntimeError: Failed to infer device type",
        "DriverMissing",
    ),
    "xinference#883": (
        "ImportError: libcuda.so.1: cannot open shared object file: No such file or directory",
        "DriverMissing",
    ),
    "vllm#23935": ("CUDA platform is not available because: NVML Shared Library Not Found", "DriverMissing"),
    "pytorch: old driver": (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)",
        "DriverMissing",
    ),
    "vllm#3019": ("RuntimeError: No CUDA GPUs are available", "DeviceMissing"),
    "vllm#8885": ("RuntimeError: Failed to infer device type", "DeviceMissing"),
    "ours: no device": (
        "engine: --device cuda, but torch finds no CUDA device; use --device cpu",
        "DeviceMissing",
    ),
    "kserve#4995": (
        "PermissionError: [Errno 13] Permission denied: '/mnt/models/config.json'",
        "ModelNotReadable",
    ),
    "kserve#1607": (
        "engine: cannot read the file: [Errno 13] Permission denied: '/mnt/models/config.json'",
        "ModelNotReadable",
    ),
    "another file": ("PermissionError: [Errno 13] Permission denied: '/.cache'", "ContainerCrashing"),
    "another missing file": (
        "FileNotFoundError: [Errno 2] No such file or directory: '/etc/tls/tls.crt'",
        "ContainerCrashing",
    ),
    "ours: empty folder": (
        "engine: /mnt/models has no config.json: MODEL must be a Hugging Face model folder",
        "ModelNotFound",
    ),
    "transformers": (
        "OSError: /mnt/models does not appear to have a file named config.json. Checkout 'https://...'",
        "ModelNotFound",
    ),
    "python": ("FileNotFoundError: [Errno 2] No such file or directory: '/mnt/models/x'", "ModelNotFound"),
    "ours: no weights": ("engine: /mnt/models has no *.safetensors files", "ModelNotFound"),
    "ours: architecture": (
        "engine: unsupported architecture ('FooForCausalLM'); config.json's `architectures` must name one of",
        "ModelUnsupported",
    ),
    "vllm: architecture": (
        "ValueError: Model architectures ['FooForCausalLM'] are not supported for now.",
        "ModelUnsupported",
    ),
    "safetensors": (
        "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge",
        "ModelUnsupported",
    ),
    "argparse": ("sheaf serve: error: unrecognized arguments: --no-such-flag", "InvalidArguments"),
    "argparse: value": ("sheaf serve: error: argument --port: invalid int value: 'x'", "InvalidArguments"),
    "ours: unknown": ("sheaf serve: unrecognized argument --no-such; --help lists them", "InvalidArguments"),
    "ours: absent": ("sheaf serve: --swap-space is not supported: nothing is swapped", "InvalidArguments"),
    "ours: value": (
        "sheaf serve: argument --port: 'x' must be a port from 1 to 65535",
        "InvalidArguments",
    ),
    "ours: length": (
        "engine: --max-model-len must be between 2 and the model's own 2048, got 9999",
        "InvalidArguments",
    ),
    "device memory": (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 224.00 MiB.",
        "DeviceOutOfMemory",
    ),
    "vllm#2248": (
        "ValueError: The model's max seq len (32768) is larger than the maximum number of tokens that can be"
        " stored in KV cache (8176). Try increasing `gpu_memory_utilization`\nValueError: No available memory"
        " for the cache blocks.",
        "DeviceOutOfMemory",
    ),
    "ours: cache": (
        "engine: one sequence of 8192 tokens needs 1.00 GiB of KV cache, but there is room for 0.10 GiB",
        "DeviceOutOfMemory",
    ),
    "host memory": (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory",
        "OutOfMemory",
    ),
    "pytorch: another process has the device": (
        "RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable",
        "DeviceMissing",
    ),
    "pytorch: fabric manager": (
        "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
        "DeviceMissing",
    ),
    "device plugin: CDI": (
        "failed to inject CDI devices: unresolvable CDI devices nvidia.com/gpu=GPU-1",
        "DriverMissing",
    ),
    "a file that was cut off": (
        "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, file"
        " not fully covered",
        "ModelUnsupported",
    ),
    "no tokenizer": ("OSError: Can't load tokenizer for '/mnt/models'. If you were", "ModelNotFound"),
    "port": ("OSError: [Errno 98] Address already in use", "PortInUse"),
    "disk": ("OSError: [Errno 28] No space left on device", "DiskFull"),
    "anything": ("ValueError: boom", "ContainerCrashing"),
    "nothing": ("", "ContainerCrashing"),
}


@pytest.mark.parametrize(("text", "reason"), CRASHES.values(), ids=CRASHES)
def test_a_crash(text: str, reason: str) -> None:
    assert of_crash(text) == reason


PULLS = {
    "containerd: tag": (
        'failed to resolve reference "docker.io/x/y:1": docker.io/x/y:1: not found',
        "ImageNotFound",
    ),
    "quay": ("manifest unknown: manifest unknown", "ImageNotFound"),
    "docker hub: private or missing": (
        'failed to resolve reference "docker.io/x/y:1": pull access denied, repository does not exist or may'
        " require authorization: server message: insufficient_scope: authorization failed",
        "ImagePullDenied",
    ),
    "ghcr": ("failed to fetch anonymous token: unexpected status: 401 Unauthorized", "ImagePullDenied"),
    "ecr": ("pull access denied: no basic auth credentials", "ImagePullDenied"),
    "artifact registry": ("unexpected status from HEAD request: 403 Forbidden", "ImagePullDenied"),
    "rate": ("toomanyrequests: You have reached your pull rate limit.", "ImageRateLimited"),
    "platform": ("no match for platform in manifest: not found", "ImageWrongPlatform"),
    "disk": ("failed to extract layer: write /var/lib/containerd/x: no space left on device", "DiskFull"),
    "dns": (
        'Head "https://nowhere.example/v2/": dial tcp: lookup nowhere.example: no such host',
        "ImagePullFailed",
    ),
    "timeout": (
        'failed to authorize: failed to fetch anonymous token: Get "https://auth.docker.io/token": dial tcp:'
        " i/o timeout",
        "ImagePullFailed",
    ),
    "certificate": ("tls: failed to verify certificate: x509: unknown authority", "ImagePullFailed"),
    "a tag like a status": ('failed to resolve reference "r.example/x:429": not found', "ImageNotFound"),
    "another one": ("r.example/x:v1.401: manifest unknown", "ImageNotFound"),
    "a port like a status": ('Head "https://r.example:403/v2/": dial tcp: no such host', "ImagePullFailed"),
    "silent back-off": ('Back-off pulling image "x/y:1"', "ImagePullFailed"),
}


@pytest.mark.parametrize(("said", "reason"), PULLS.values(), ids=PULLS)
def test_an_image(said: str, reason: str) -> None:
    assert of_pull(names.CONTAINER, "ImagePullBackOff", said) == reason


def test_an_image_that_is_the_model_is_looked_for_at_the_models_address() -> None:
    assert of_pull("modelcar", "ErrImagePull", "manifest unknown") == "ModelNotFound"
    assert of_pull("modelcar", "ErrImagePull", "401 Unauthorized") == "ModelAccessDenied"
    assert of_pull(names.CONTAINER, "InvalidImageName", "x") == "ImageNameInvalid"


PODS = 'pods "m-predictor-5b4-x" is forbidden: '
REFUSALS = {
    "quota": (
        PODS + "exceeded quota: gpus, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=4,"
        " limited: requests.nvidia.com/gpu=4",
        "QuotaExceeded",
    ),
    "limit range": (
        PODS
        + "[maximum cpu usage per Container is 2, but limit is 4, maximum memory usage per Container is 1Gi]",
        "LimitRangeViolated",
    ),
    "quota wants limits": (
        PODS + "failed quota: q: must specify limits.cpu for: istio-proxy",
        "QuotaWantsLimits",
    ),
    "kserve#1242": (PODS + "failed quota: kf-resource-quota: must specify memory", "QuotaWantsLimits"),
    "odo#6847": (
        PODS + 'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "c")',
        "PodSecurityViolated",
    ),
    "openshift-azure#265": (
        PODS
        + "unable to validate against any security context constraint: [provider restricted: hostNetwork]",
        "PodSecurityViolated",
    ),
    "nix-snapshotter#154": (
        PODS + 'error looking up service account ml/puller: serviceaccount "puller" not found',
        "ServiceAccountNotFound",
    ),
    "priority": (PODS + "no PriorityClass with name llm-serving was found", "ClassNotFound"),
    "a quota of a priority": (
        PODS + "insufficient quota to match these scopes: [{PriorityClass In [llm-serving]}]",
        "QuotaExceeded",
    ),
    "runtime class": (PODS + 'pod rejected: RuntimeClass "nvidia" not found', "ClassNotFound"),
    "kyverno": (
        'admission webhook "validate.kyverno.svc-fail" denied the request: resource Pod/ml/x was blocked',
        "AdmissionDenied",
    ),
    "policy": (
        PODS + "ValidatingAdmissionPolicy 'images' with binding 'images' denied request: only our registry",
        "AdmissionDenied",
    ),
    "webhook away": (
        'failed calling webhook "inferenceservice.kserve-webhook-server.pod-mutator":'
        " failed to call webhook: Post https://x: connect: connection refused",
        "WebhookUnavailable",
    ),
    "istio#7650": (PODS + "SecurityContext.RunAsUser is forbidden", "PodsRefused"),
}


@pytest.mark.parametrize(("said", "reason"), REFUSALS.values(), ids=REFUSALS)
def test_a_pod_that_is_never_created(said: str, reason: str) -> None:
    found = of_refusal(said, None)
    assert found.reason == reason
    assert found.lacks == ((Lack("Quota", "requests.nvidia.com/gpu"),) if "gpus, requested" in said else ())


TYPED = (
    "failed to create typed patch object (ml/m; serving.kserve.io/v1beta1, Kind=InferenceService):"
    " .spec.predictor.affinity.nodeAffinity.x: field not declared in schema"
)
WRITES = {
    "kubernetes#139253": (500, TYPED, "Rejected"),
    "webhook not there yet": (500, 'failed calling webhook "x": connection refused', "ApplyFailed"),
    "etcd": (500, "etcdserver: request timed out", "ApplyFailed"),
    "etcd: size": (500, "etcdserver: request is too large", "Rejected"),
    "size": (413, "Request entity too large: limit is 3145728", "Rejected"),
    "invalid": (422, "spec.x: Invalid value", "Rejected"),
    "denied": (403, 'admission webhook "x" denied the request: no', "Rejected"),
    "no right": (
        403,
        'inferenceservices is forbidden: User "system:serviceaccount:s:o" cannot patch resource',
        "OperatorForbidden",
    ),
    "quota": (
        403,
        "exceeded quota: q, requested: count/inferenceservices=1, used: count/inferenceservices=1",
        "QuotaExceeded",
    ),
    "busy": (429, "too many requests", "ApplyFailed"),
    "away": (503, "apiserver is shutting down", "ApplyFailed"),
}


@pytest.mark.parametrize(("code", "said", "reason"), WRITES.values(), ids=WRITES)
def test_a_write_that_failed(code: int, said: str, reason: str) -> None:
    found = of_write(ApiError(code, "x", said), None)
    assert found.reason == reason
    assert said[:60] in found.message


def test_the_servers_own_answer_is_read() -> None:
    body = b'{"kind": "Status", "message": "x: field not declared in schema", "reason": "", "code": 500}'
    assert of_answer(500, body).permanent
    assert not of_answer(500, b'{"message": "failed calling webhook"}').permanent


def test_the_longest_message_fits_the_condition() -> None:
    told = of_write(ApiError(422, "Invalid", "x" * 5000), k.owner())
    assert len(told.message) < 900
