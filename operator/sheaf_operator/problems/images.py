"""Why an image cannot be fetched. Pure."""

from __future__ import annotations

from sheaf_operator.problems.evidence import first, rules

WAITING = {
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "ImageInspectError",
    "RegistryUnavailable",
}
# The status of an answer, and not a tag or a port of the image, which the text names as well.
_STATUS = r"(?<![\w:./@-])"
_RULES = rules(
    ("ImageNameInvalid", r"InvalidImageName|invalid reference format|couldn't parse image"),
    ("ImageRateLimited", rf"toomanyrequests|{_STATUS}429\b|pull rate limit|rate limit exceeded"),
    ("ImageWrongPlatform", r"no match for platform|no matching manifest|no image found .* for architecture"),
    ("DiskFull", r"no space left on device|disk quota exceeded"),
    (
        "ImagePullFailed",
        r"ErrImageNeverPull|no such host|dial tcp|i/o timeout|connection refused|connection reset|x509"
        rf"|TLS handshake|server misbehaving|{_STATUS}50[0234]\b",
    ),
    (
        "ImagePullDenied",
        rf"unauthorized|{_STATUS}40[13]\b|forbidden|access denied|denied:|authentication required"
        r"|insufficient_scope"
        r"|no basic auth credentials|authorization failed|permission .* denied",
    ),
    ("ImageNotFound", rf"not found|manifest unknown|name unknown|{_STATUS}404\b|does not exist"),
)
# The image of an oci:// address is the model.
MODEL_CONTAINERS = ("modelcar", "modelcar-init")
_OF_MODEL = {"ImageNotFound": "ModelNotFound", "ImagePullDenied": "ModelAccessDenied"}


def is_silent(waiting: str, said: str) -> bool:
    """Whether the kubelet only says that it waits: before Kubernetes 1.32 the cause is in an Event then."""
    return waiting == "ImagePullBackOff" and said.startswith("Back-off pulling image") and "Err" not in said


def of_pull(container: str, waiting: str, said: str) -> str:
    """The reason, from the kubelet's reason and the registry's words."""
    reason = first(_RULES, f"{waiting} {said}") or "ImagePullFailed"
    return _OF_MODEL.get(reason, reason) if container in MODEL_CONTAINERS else reason
