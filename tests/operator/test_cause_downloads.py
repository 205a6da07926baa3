"""Why a model could not be fetched: messages as people met them. The ids say where."""

import pytest
from sheaf_operator.problems.downloads import of_download

DOWNLOADS = {
    "hub: private": (
        "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. Repository Not Found for url: https://x",
        "ModelAccessDenied",
    ),
    "hub: gated": (
        "huggingface_hub.errors.GatedRepoError: 403 Client Error. Cannot access gated repo for url https://x",
        "ModelAccessDenied",
    ),
    "hub: missing": (
        "requests.exceptions.HTTPError: 404 Client Error: Not Found for url: https://huggingface.co/api/models/x",
        "ModelNotFound",
    ),
    "hub: file": (
        "EntryNotFoundError: 404 Client Error. Entry Not Found for url: https://x",
        "ModelNotFound",
    ),
    "hub: busy": (
        "HfHubHTTPError: 429 Client Error: Too Many Requests for url: https://x",
        "ModelStoreUnreachable",
    ),
    "hub: no way out": (
        "LocalEntryNotFoundError: An error happened while trying to locate the file on the Hub",
        "ModelStoreUnreachable",
    ),
    "s3: denied": (
        "ClientError: An error occurred (AccessDenied) when calling the ListObjects operation: Access Denied",
        "ModelAccessDenied",
    ),
    "s3: head": (
        "ClientError: An error occurred (403) when calling the HeadObject operation: Forbidden",
        "ModelAccessDenied",
    ),
    "kserve#1764": (
        "botocore.exceptions.NoCredentialsError: Unable to locate credentials",
        "ModelAccessDenied",
    ),
    "s3: no key": ("ClientError: An error occurred (NoSuchKey) when calling GetObject", "ModelNotFound"),
    "s3: no bucket": (
        "ClientError: An error occurred (NoSuchBucket) when calling ListObjectsV2",
        "ModelNotFound",
    ),
    "kserve#1914": ("RuntimeError: Failed to fetch model. No model found in s3://models/x.", "ModelNotFound"),
    "kserve#1348": (
        "Compute Engine Metadata server unavailable onattempt 3 of 3. Reason: timed out\n"
        "google.auth.exceptions.TransportError: HTTPSConnectionPool: Max retries exceeded: No route to host",
        "ModelStoreUnreachable",
    ),
    "gs: denied": (
        "google.api_core.exceptions.Forbidden: 403 GET https://storage.googleapis.com/x: sa does not have"
        " storage.objects.list access",
        "ModelAccessDenied",
    ),
    "hub 1.0 on httpx: private": (
        "httpx.HTTPStatusError: Client error '401 Unauthorized' for url 'https://huggingface.co/api/models/x'",
        "ModelAccessDenied",
    ),
    "hub 1.0 on httpx: missing": (
        "httpx.HTTPStatusError: Client error '404 Not Found' for url 'https://huggingface.co/api/models/x'",
        "ModelNotFound",
    ),
    "hub 1.0 on httpx: broken": (
        "httpx.HTTPStatusError: Server error '503 Service Temporarily' for url 'https://huggingface.co/x'",
        "ModelStoreUnreachable",
    ),
    "httpx: no way out": ("httpx.ConnectError: All connection attempts failed", "ModelStoreUnreachable"),
    "httpx: cut off": (
        "httpx.RemoteProtocolError: peer closed connection without sending complete message body",
        "ModelStoreUnreachable",
    ),
    "hub: a token with a line break": (
        "requests.exceptions.InvalidHeader: Invalid leading whitespace, reserved character(s), or return"
        " character(s) in header value: 'Bearer hf_x\\n'",
        "ModelAccessDenied",
    ),
    "httpx: a token with a line break": (
        "httpx.LocalProtocolError: Illegal header value b'Bearer hf_x\\n'",
        "ModelAccessDenied",
    ),
    "hub: a token that is none": (
        "HTTPError: Invalid user token. The token from HF_TOKEN environment variable is invalid.",
        "ModelAccessDenied",
    ),
    "hub: a name that is none": (
        "HFValidationError: Repo id must use alphanumeric or '-', '_', '.': '--' and '..' are forbidden",
        "ModelNotFound",
    ),
    "hub: half a file": (
        "OSError: Consistency check failed: file should be of size 4976698672 but has size 123",
        "ModelStoreUnreachable",
    ),
    "xet: network": (
        "RuntimeError: Data processing error: CAS service error : ReqwestMiddleware Error: Request failed",
        "ModelStoreUnreachable",
    ),
    "s3: overloaded": (
        "An error occurred (503) when calling the HeadObject operation (reached max retries: 4): Unavailable",
        "ModelStoreUnreachable",
    ),
    "azure: missing": ("ResourceNotFoundError: The specified container does not exist.", "ModelNotFound"),
    "kserve#3256: a folder of a claim": (
        "RuntimeError: Local path /mnt/pvc/nllb does not exist.",
        "ModelNotFound",
    ),
    "dns": (
        'EndpointConnectionError: Could not connect to the endpoint URL: "http://minio.nowhere/models"',
        "ModelStoreUnreachable",
    ),
    "certificate": (
        "requests.exceptions.SSLError: [SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate",
        "ModelStoreUnreachable",
    ),
    "disk": ("OSError: [Errno 28] No space left on device", "DiskFull"),
    "the last error counts": (
        "HTTPError: 404 Client Error: Not Found for url: https://x/optional.json\n"
        "OSError: [Errno 28] No space left on device",
        "DiskFull",
    ),
    "else the whole text": (
        "HTTPError: 401 Client Error: Unauthorized\nRuntimeError: the download failed",
        "ModelAccessDenied",
    ),
    "anything": ("RuntimeError: surprise", "ModelDownloadFailed"),
    "nothing": ("", "ModelDownloadFailed"),
}


@pytest.mark.parametrize(("text", "reason"), DOWNLOADS.values(), ids=DOWNLOADS)
def test_a_download(text: str, reason: str) -> None:
    assert of_download(text) == reason
