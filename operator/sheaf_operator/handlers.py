"""kopf's part: watch, index, and hand keys to the work queue.

Only `kopf.on.event` and `@kopf.index` are used: they store nothing on the objects they see. Other kopf
handlers would add a finalizer and annotations to the user's resource, and deleting it would need a running
operator.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from sheaf_operator.api import names
from sheaf_operator.api.spec import GROUP, PLURAL, VERSION
from sheaf_operator.cluster.client import Cluster, load_configuration
from sheaf_operator.run.app import App
from sheaf_operator.settings import Settings

# Kinds that carry our label: only those objects are asked of the API server.
CHILDREN = (
    ("serving.kserve.io", "v1beta1", "inferenceservices"),
    ("serving.kserve.io", "v1alpha1", "servingruntimes"),
    ("apps", "v1", "deployments"),
    ("", "v1", "pods"),
)
CREDENTIALS_AGE = timedelta(minutes=10)
OURS = {names.LABEL_DEPLOYMENT: kopf.PRESENT}


def configure(settings: kopf.OperatorSettings, own: Settings) -> None:
    settings.posting.enabled = False  # Events are written by recorder.py
    settings.peering.standalone = True  # the Lease decides who writes
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 5
    # Namespaces and CRDs are cluster-scoped: an operator of one namespace has no right to watch them.
    settings.scanning.disabled = bool(own.watch_namespace)
    for group, version, plural in CHILDREN:
        settings.watching.label_selectors[group, version, plural] = names.LABEL_DEPLOYMENT


@kopf.on.login()
async def login(**_kwargs: Any) -> kopf.ConnectionInfo:
    """The same credentials as our own requests use; kopf's own way needs cluster DNS."""
    loaded = await load_configuration()
    scheme, _, token = (await loaded.get_api_key_with_prefix("BearerToken") or "").partition(" ")
    return kopf.ConnectionInfo(
        server=loaded.host,
        ca_path=loaded.ssl_ca_cert if loaded.verify_ssl else None,
        insecure=not loaded.verify_ssl,
        scheme=scheme.title() or None,
        token=token or None,
        certificate_path=loaded.cert_file,
        private_key_path=loaded.key_file,
        # Tokens of service accounts are replaced on disk before they expire.
        expiration=datetime.now(UTC) + CREDENTIALS_AGE,
    )


@kopf.on.startup()
async def start(settings: kopf.OperatorSettings, memo: Any, **indices: Any) -> None:
    deployments = indices["deployments"]
    own = memo.get("settings") or Settings.from_env()
    configure(settings, own)
    cluster = await Cluster.connect()
    memo.app = App(own, cluster, keys=lambda: list(deployments), on_failure=memo.get("on_failure", _exit))
    memo.app.start()


def _exit() -> None:
    raise SystemExit(1)


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: Any) -> None:
    if "app" in memo:
        await memo.app.stop()


@kopf.index(GROUP, VERSION, PLURAL)  # type: ignore[arg-type]
async def deployments(namespace: str, name: str, **_: Any) -> dict[tuple[str, str], None]:
    """Every known LLMDeployment, for the resync."""
    return {(namespace, name): None}


@kopf.on.event(GROUP, VERSION, PLURAL)  # type: ignore[arg-type]
async def on_deployment(
    memo: kopf.Memo, namespace: str, name: str, meta: kopf.Meta, type: str | None, **_: Any
) -> None:
    if type == "DELETED" or memo.app.reconciler.concerns((namespace, name), meta):
        memo.app.touch((namespace, name))


async def on_child(memo: kopf.Memo, namespace: str, labels: kopf.Labels, **_: Any) -> None:
    memo.app.touch((namespace, labels[names.LABEL_DEPLOYMENT]))


for _group, _version, _plural in CHILDREN:
    kopf.on.event(_group, _version, _plural, id=f"on-{_plural}", labels=OURS)(on_child)  # type: ignore[arg-type]
