"""The Role grants exactly what the operator asks for: every request is made for real, and compared."""

import inspect
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import kube_objects as k
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client
from sheaf_operator.cluster import kinds
from sheaf_operator.cluster.client import APPLY, Cluster
from sheaf_operator.cluster.errors import ApiError
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.desired import render
from sheaf_operator.desired.budget import pod_disruption_budget
from sheaf_operator.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
Right = tuple[str, str, str]  # group, resource, verb

VERBS = {"POST": "create", "PUT": "update", "DELETE": "delete", "PATCH": "patch"}
OBJECT = {"metadata": {"name": "m", "namespace": "ns", "uid": "u", "resourceVersion": "7"}}
POD = {"metadata": {"namespace": "ns", "name": "p", "uid": "u"}}
LIST = {"apiVersion": "v1", "kind": "List"}
PATHS = {kind.path("ns") for kind in kinds.ALL} | {"/api/v1/namespaces/ns/events"}


def rights_of(request: web.Request) -> set[Right]:
    """What the API server's authorizer would ask for; /apis/GROUP/VERSION/... or /api/VERSION/..."""
    parts = request.path.strip("/").split("/")
    group = parts[1] if parts[0] == "apis" else ""
    namespaced = parts[parts.index("namespaces") + 2 :]
    resource = "/".join([namespaced[0], *namespaced[2:]])
    if request.method == "GET":
        return {(group, resource, "get" if len(namespaced) > 1 else "list")}
    rights = {(group, resource, VERBS[request.method])}
    if request.content_type == APPLY and len(namespaced) == 2:
        rights.add((group, resource, "create"))  # server-side apply of an object that is not there
    return rights


async def asked_for() -> set[Right]:
    asked: set[Right] = set()

    async def answer(request: web.Request) -> web.Response:
        asked.update(rights_of(request))
        if request.method == "GET" and request.path in PATHS:
            return web.json_response({**LIST, "metadata": {"resourceVersion": "7"}, "items": []})
        if request.method == "GET":  # what is to be created is not there yet
            missing = {"reason": "NotFound", "details": {"name": "m"}}
            return web.json_response(missing, status=404)
        return web.json_response({**OBJECT, "spec": {"containers": []}})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(app) as server:
        configuration = client.Configuration(host=str(server.make_url("")).rstrip("/"))
        cluster = Cluster(configuration, lambda *_: None, Settings())
        await call_everything(cluster)
        await cluster.close()
    return asked


async def call_everything(cluster: Cluster) -> None:
    of = k.revision(k.spec())
    runtime = render.serving_runtime("m", "ns", "u", of)
    service = render.inference_service("m", "ns", "u", of, "Surge", False)
    budget = pod_disruption_budget(k.spec(), "m", "ns", "u")
    observed = Observed(k.owner())
    calls: dict[str, list[Awaitable[Any]]] = {
        "list": [cluster.list(kind, "ns") for kind in kinds.ALL],
        "confirm": [gone(cluster, observed)],
        "apply": [cluster.apply(obj, uid) for obj in (runtime, service, budget) for uid in (None, "u")],
        "write_status": [cluster.write_status(observed, {})],
        "delete": [
            cluster.delete(kind, "ns", "m-1", "u") for kind in ("ServingRuntime", "PodDisruptionBudget")
        ],
        "scale": [cluster.scale(k.deployment(), 2)],
        "set_deletion_cost": [cluster.set_deletion_cost(POD, "-1")],
        "set_adapters": [cluster.set_adapters(POD, "{}")],
        "events": [cluster.events("ns", "Pod", "p")],
        "create_event": [cluster.create_event("ns", {})],
        "get_lease": [cluster.get_lease("ns", "sheaf-operator")],
        "write_lease": [cluster.write_lease("ns", "sheaf-operator", {}, create) for create in (True, False)],
    }
    public = {n for n, _ in inspect.getmembers(Cluster, inspect.iscoroutinefunction) if n[0] != "_"}
    assert public == calls.keys() | {"connect", "close"}, "call the new method here too"
    for group in calls.values():
        for call in group:
            await call


async def gone(cluster: Cluster, observed: Observed) -> None:
    with pytest.raises(ApiError):
        await cluster.confirm(observed)


def watched() -> set[Right]:
    """What kopf lists and watches."""
    what = {("apiextensions.k8s.io", "customresourcedefinitions")}
    what |= {(kind.group, kind.plural) for kind in kinds.ALL}
    return {(group, plural, verb) for group, plural in what for verb in ("list", "watch")}


def granted() -> set[Right]:
    documents = yaml.safe_load_all((ROOT / "manifests" / "rbac.yaml").read_text())
    rules = [rule for doc in documents for rule in doc.get("rules", [])]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


async def test_the_role_is_exactly_what_is_used() -> None:
    needed = await asked_for() | watched()
    assert granted() - needed == set(), "granted and never used"
    assert needed - granted() == set(), "used and not granted"


@pytest.mark.parametrize("word", ["*", "secrets", "impersonate", "escalate", "bind"])
def test_no_right_is_dangerous(word: str) -> None:
    assert not [right for right in granted() if word in right]
