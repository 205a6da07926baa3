"""kopf's part: watch, and hand what is seen to the cache and the work queue.

Only `kopf.on.event` is used: it stores nothing on the objects it sees. Other kopf handlers would add a
finalizer and annotations to the user's resource, and deleting it would need a running operator.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from sheaf_operator.cluster import kinds
from sheaf_operator.cluster.cache import Cache
from sheaf_operator.cluster.client import Cluster, load_configuration
from sheaf_operator.cluster.kinds import Kind
from sheaf_operator.run.app import App
from sheaf_operator.settings import Settings

CREDENTIALS_AGE = timedelta(minutes=10)


def configure(settings: kopf.OperatorSettings, own: Settings) -> None:
    settings.posting.enabled = False  # Events are written by recorder.py
    settings.peering.standalone = True  # the Lease decides who writes
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 5
    # Namespaces and CRDs are cluster-scoped: an operator of some namespaces has no right to watch them.
    settings.scanning.disabled = bool(own.watch_namespaces)
    for kind in kinds.ALL:
        if selector := kind.selector_for(own.watch_class):
            settings.watching.label_selectors[kind.group, kind.version, kind.plural] = selector


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
async def start(settings: kopf.OperatorSettings, memo: Any, **_: Any) -> None:
    own = memo.get("settings") or Settings.from_env()
    configure(settings, own)
    cache = Cache(own.watch_namespaces)
    cluster = await Cluster.connect(lambda *event: memo.app.see(*event), own)
    memo.app = App(
        own,
        cluster,
        cache,
        on_failure=memo.get("on_failure", _exit),
        on_new_kinds=memo.get("on_new_kinds", _nothing),
    )
    memo.app.start()


def _exit() -> None:
    raise SystemExit(1)


def _nothing() -> None:
    pass


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: Any) -> None:
    if "app" in memo:
        await memo.app.stop()


def _watch(kind: Kind) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, id=f"on-{kind.plural}")
    async def see(memo: kopf.Memo, event: kopf.RawEvent, **_: Any) -> None:
        memo.app.watched(kind, event["type"], dict(event["object"]))


for _kind in kinds.ALL:
    _watch(_kind)
