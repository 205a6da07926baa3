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
_RULES = rules(
    ("ImageNameInvalid", r"InvalidImageName|invalid reference format|couldn't parse image"),
    ("ImageRateLimited", r"toomanyrequests|\b429\b|rate limit"),
    ("ImageWrongPlatform", r"no match for platform|no matching manifest|no image found .* for architecture"),
    ("DiskFull", r"no space left on device|disk quota exceeded"),
    (
        "ImagePullFailed",
        r"ErrImageNeverPull|no such host|dial tcp|i/o timeout|connection refused|connection reset|x509"
        r"|TLS handshake|server misbehaving|\b50[0234]\b",
    ),
    (
        "ImagePullDenied",
        r"unauthorized|\b40[13]\b|forbidden|access denied|denied:|authentication required|insufficient_scope"
        r"|no basic auth credentials|authorization failed|permission .* denied",
    ),
    ("ImageNotFound", r"not found|manifest unknown|name unknown|\b404\b|does not exist"),
)
# The image of an oci:// address is the model.
MODEL_CONTAINERS = ("modelcar", "modelcar-init")
_OF_MODEL = {"ImageNotFound": "ModelNotFound", "ImagePullDenied": "ModelAccessDenied"}


def of_pull(container: str, waiting: str, said: str) -> str:
    """The reason, from the kubelet's reason and the registry's words."""
    reason = first(_RULES, f"{waiting} {said}") or "ImagePullFailed"
    return _OF_MODEL.get(reason, reason) if container in MODEL_CONTAINERS else reason
