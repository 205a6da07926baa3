"""What the API server answers, as the rest of the operator sees it."""

from __future__ import annotations

from typing import Any

import kube_objects as k
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client
from sheaf_operator.cluster import kinds
from sheaf_operator.cluster.cache import Cache
from sheaf_operator.cluster.client import Cluster
from sheaf_operator.desired import budget
from sheaf_operator.run.app import App
from sheaf_operator.settings import Settings


async def listed(kind: kinds.Kind, *pages: dict[str, Any]) -> list[dict[str, Any]]:
    answers = iter(pages)

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(next(answers))

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        configuration = client.Configuration(host=str(server.make_url("")).rstrip("/"))
        cluster = Cluster(configuration, lambda *_: None, Settings())
        items, _ = await cluster.list(kind, "ns")
        await cluster.close()
    return items


async def test_what_a_list_leaves_out_of_its_items_is_no_drift() -> None:
    """The items of a PodDisruptionBudgetList say neither apiVersion nor kind."""
    given = k.spec(autoscaling={"maxReplicas": 3})
    written = k.budget(given)
    assert written is not None
    item = {key: value for key, value in written.items() if key not in ("apiVersion", "kind")}
    head = {"apiVersion": "policy/v1", "kind": "PodDisruptionBudgetList"}
    first = {**head, "metadata": {"resourceVersion": "7", "continue": "more"}, "items": [item]}
    last = {**head, "metadata": {"resourceVersion": "7"}, "items": []}
    (found,) = await listed(kinds.BUDGETS, first, last)
    assert budget.actions(given, k.settled(given, budget=found)) == []


async def test_a_change_that_the_answer_to_our_own_write_brings_gets_a_run() -> None:
    """Its event comes later and is no news then (seen when an API server had been restarted)."""
    before, after = k.owner(resourceVersion="5"), k.owner(generation=2, resourceVersion="9")

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(after)

    web_app = web.Application()
    web_app.router.add_patch("/{path:.*}", answer)
    async with TestServer(web_app) as server:
        configuration = client.Configuration(host=str(server.make_url("")).rstrip("/"))
        cluster = Cluster(configuration, lambda kind, obj: app.see(kind, "MODIFIED", obj), Settings())
        cache = Cache()
        app = App(Settings(), cluster, cache, lambda: None)
        queue = app._worker._queue
        app.see(kinds.MODELS, None, before)
        assert queue.take(0.0) == ("ns", "m")
        observed = cache.observe("ns", "m")
        assert observed is not None
        await cluster.write_status(observed, {})
        app.see(kinds.MODELS, "MODIFIED", after)
        queue.done(("ns", "m"), 0.0)
        assert queue.take(60.0) == ("ns", "m")
        await app.stop()
