"""What the API server answers, as the rest of the operator sees it."""

from __future__ import annotations

from typing import Any

import kube_objects as k
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client
from operator_world import HeldLease
from sheaf_operator.api import names
from sheaf_operator.cluster import kinds
from sheaf_operator.cluster.cache import Cache
from sheaf_operator.cluster.client import Cluster
from sheaf_operator.cluster.errors import ApiError
from sheaf_operator.desired import budget
from sheaf_operator.desired.actions import Apply
from sheaf_operator.run.app import App
from sheaf_operator.run.apply import Executor
from sheaf_operator.run.telemetry import Telemetry
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
        cluster = Cluster(configuration, lambda *event: app.see(*event), Settings())
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


@pytest.mark.parametrize("told_first", [True, False])
async def test_a_model_that_moved_to_another_operator_while_its_status_was_written_is_let_go(
    told_first: bool,
) -> None:
    """What a watch tells of its end has the version of the move, and ours is later."""
    before = k.owner(resourceVersion="5")
    label = {names.LABEL_CLASS: "theirs"}
    after, end = k.owner(labels=label, resourceVersion="9"), k.owner(resourceVersion="8")
    cache = Cache()
    app = App(Settings(), None, cache, lambda: None)  # type: ignore[arg-type]
    app.see(kinds.MODELS, None, before)
    queue = app._worker._queue
    assert queue.take(0.0) == ("ns", "m")
    events = [("DELETED", end), ("MODIFIED", after)]
    for event, obj in events if told_first else reversed(events):
        app.see(kinds.MODELS, event, obj)
    assert cache.keys == []
    queue.done(("ns", "m"), 0.0)
    assert queue.take(60.0) == ("ns", "m")
    app.see(kinds.MODELS, "ADDED", k.owner(resourceVersion="12"))
    assert cache.keys == [("ns", "m")]
    await app._scraper.close()


@pytest.mark.parametrize("operator_class", ["", "theirs"])
@pytest.mark.parametrize("kind", kinds.ALL, ids=lambda kind: kind.plural)
@pytest.mark.parametrize(
    "labels",
    [{}, {names.LABEL_CLASS: ""}, {names.LABEL_CLASS: "theirs"}, {names.LABEL_DEPLOYMENT: "m"}],
    ids=str,
)
def test_what_counts_is_what_the_selector_selects(
    kind: kinds.Kind, labels: dict[str, str], operator_class: str
) -> None:
    selector = kind.selector_for(operator_class)
    key, equals, value = selector.lstrip("!").partition("=")
    selected = not selector or (labels.get(key) == value if equals else key in labels) != selector.startswith(
        "!"
    )
    assert kind.counts(labels, operator_class) == selected


@pytest.mark.parametrize("namesake", [False, True])
async def test_no_child_is_made_for_a_model_that_was_deleted_unseen(namesake: bool) -> None:
    """A watch that hangs does not tell of it, and the next list may be minutes away."""
    stale, asked = k.owner(resourceVersion="5"), []
    items = [k.owner(uid="another", resourceVersion="8")] if namesake else []

    async def answer(request: web.Request) -> web.Response:
        asked.append((request.method, request.query.get("fieldSelector")))
        return web.json_response({"metadata": {"resourceVersion": "9"}, "items": items})

    web_app = web.Application()
    web_app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(web_app) as server:
        configuration = client.Configuration(host=str(server.make_url("")).rstrip("/"))
        cluster, cache = Cluster(configuration, lambda *event: app.see(*event), Settings()), Cache()
        app = App(Settings(), cluster, cache, lambda: None)
        app.see(kinds.MODELS, None, stale)
        observed = cache.observe("ns", "m")
        assert observed is not None
        executor = Executor(cluster, HeldLease(), Telemetry())  # type: ignore[arg-type]
        child = Apply(k.service(k.revision(k.spec())), create=True)
        with pytest.raises(ApiError, match="is gone"):
            await executor.act(observed, child)
        assert asked == [("GET", "metadata.name=m")]
        now = cache.observe("ns", "m")
        assert (now.uid if now else None) == ("another" if namesake else None)
        await app.stop()
