"""Why a model server ended, from its last words. Pure."""

from __future__ import annotations

from sheaf_operator.problems.evidence import first, rules

_MODELS = r"['\"/]?/?mnt/models"
_RULES = rules(
    (
        "InvalidArguments",
        r"unrecognized arguments?\b|(error|sheaf serve): argument |arguments are required|invalid choice:"
        r"|ambiguous option|no such option|sheaf serve: --\S+ is not supported",
    ),
    (
        "DriverMissing",
        r"lib(cuda|nvidia-ml|cudart|nvrtc|amdhip64)[\w.-]*\.so|found no NVIDIA driver|nvidia-container-cli"
        r"|NVIDIA driver on your system|driver version is insufficient|driver/library version mismatch"
        r"|initialize NVML|NVML Shared Library Not Found|CDI devices?\b",
    ),
    (
        "DeviceOutOfMemory",
        r"(CUDA|HIP)( error:)? out of memory|OutOfMemoryError|no available memory for the cache blocks"
        r"|KV cache.{0,80}(larger than|but there is room)|free memory on device.{0,80}less than"
        r"|CUDA_ERROR_OUT_OF_MEMORY|CUBLAS_STATUS_ALLOC_FAILED",
    ),
    ("OutOfMemory", r"cannot allocate memory|can't allocate memory|\bMemoryError\b|std::bad_alloc"),
    (
        "DeviceMissing",
        r"no (CUDA|HIP) GPUs are available|no CUDA-capable device|finds no CUDA device|CUDA unknown error"
        r"|invalid device ordinal|failed to infer device type|GPU is lost|fallen off the bus"
        r"|CUDA-capable devices are busy|cudaGetDeviceCount|system not yet initialized"
        r"|unable to determine the device handle|CUDA error: (unspecified launch|uncorrectable ECC)",
    ),
    ("ModelNotReadable", rf"(permission denied|PermissionError|EACCES)[^\n]{{0,80}}{_MODELS}"),
    ("PortInUse", r"address already in use|EADDRINUSE"),
    ("DiskFull", r"no space left on device|ENOSPC"),
    (
        "ModelNotFound",
        rf"no such file[^\n]{{0,30}}{_MODELS}|{_MODELS}[^\n]{{0,80}}(no such file|does not exist)"
        rf"|(folder|directory)[^\n]{{0,40}}{_MODELS}[^\n]{{0,40}}not (found|exist)|has no config\.json"
        r"|does not appear to have a file named config\.json|has no \*\.safetensors|no \*\.safetensors files"
        r"|is not a (model )?(folder|directory)"
        rf"|can't load [^\n]{{0,40}}{_MODELS}|HFValidationError[^\n]{{0,160}}{_MODELS}",
    ),
    (
        "ModelUnsupported",
        r"UnsupportedModelError|architectures? .{0,120}not supported"
        r"|unsupported (architecture|model|quantization)|config\.json: |is damaged or incomplete"
        r"|lacks the tensors|trust_remote_code|SafetensorError|while deserializing header"
        r"|does not recognize this architecture|which is not supported",
    ),
    ("InvalidArguments", r"--[a-z][\w-]+ (must|needs|cannot|may not|does not)\b"),
)
_CODES = {
    0: "it ended by itself",
    132: "illegal instruction: the image asks for a newer processor than the node's",
    134: "it aborted",
    137: "it was killed: by the node for want of memory, or after its liveness probe failed",
    139: "segmentation fault",
    143: "it was asked to end: its liveness probe failed, or somebody stopped it",
}


def of_crash(text: str) -> str:
    return first(_RULES, text) or "ContainerCrashing"


def of_code(code: int) -> str:
    """What an exit code alone tells."""
    return _CODES.get(code, "it left no message")
