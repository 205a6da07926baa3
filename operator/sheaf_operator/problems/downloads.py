"""Why KServe's storage initializer could not fetch the model. Pure.

Traces of its Python code: huggingface_hub (on requests, or on httpx since 1.0), boto3, google-cloud-storage,
azure.
"""

from __future__ import annotations

from sheaf_operator.problems.evidence import first, rules
from sheaf_operator.problems.problem import last_line

_RULES = rules(
    ("DiskFull", r"no space left on device|ENOSPC|not enough free disk space|disk quota exceeded"),
    (
        "ModelAccessDenied",
        r"40[13] Client Error|\((401|403)\)|\b40[13] (GET|HEAD|POST|PUT)\b|unauthorized|(?<!are )forbidden"
        r"|gated ?repo|invalid user token|Illegal header value|return character\(s\) in header"
        r"|access ?denied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|NoCredentials"
        r"|unable to locate credentials|credentials were not found|partial credentials|invalid_grant"
        r"|AuthenticationFailed|AuthorizationPermissionMismatch|AuthorizationFailure|anonymous caller"
        r"|authentication required|is restricted",
    ),
    (
        "ModelNotFound",
        r"404 Client Error|\(404\)|\b404 (GET|HEAD)\b|Client error '404|NoSuchKey|NoSuchBucket"
        r"|(bucket|container|blob) does not exist|local path \S* does not exist|Invalid bucket name"
        r"|(Repository|Revision|(?<!Local)Entry) ?Not ?Found|BlobNotFound|ContainerNotFound|no model found in"
        r"|not a valid model identifier|Invalid rev id|Cannot recognize storage type|HFValidationError",
    ),
    (
        "ModelStoreUnreachable",
        r"name or service not known|name resolution|NameResolution|no address associated|could not connect"
        r"|EndpointConnectionError|connection ?(refused|reset|aborted|closed|error)|timed? ?out"
        r"|connection attempts failed|ConnectError|RemoteProtocolError|ReqwestMiddleware Error"
        r"|error sending request|offline mode is enabled|consistency check failed"
        r"|ConnectTimeout|ReadTimeout|CERTIFICATE_VERIFY_FAILED|SSLError|network is unreachable"
        r"|no route to host|max retries exceeded"
        r"|429 Client Error|too many requests|\b50[0234] Server Error|Server error '50|\(50[0234]\)"
        r"|SlowDown|Service ?Unavailable|ProxyError"
        r"|LocalEntryNotFoundError|IncompleteRead|ChunkedEncodingError",
    ),
)


def of_download(text: str) -> str:
    """The last error line tells best; what came before it tells where that line is of no help."""
    return first(_RULES, last_line(text)) or first(_RULES, text) or "ModelDownloadFailed"
