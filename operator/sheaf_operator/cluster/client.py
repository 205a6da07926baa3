"""The one file that talks to the API server. All else sees plain JSON and the errors of `errors`.

What a write answers is seen at once, like a watch's event: nobody acts on a state older than our own writing,
and what others have changed meanwhile is in no event that comes later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson
from kubernetes.aio import client, config

from sheaf_operator.api import names
from sheaf_operator.cluster import kinds
from sheaf_operator.cluster.errors import ApiError, KindMissing, NoConfiguration, Unreachable, of_answer
from sheaf_operator.cluster.kinds import Kind
from sheaf_operator.cluster.observed import Json, Observed
from sheaf_operator.settings import Settings

See = Callable[[Kind, str, Json], None]

REQUEST_TIMEOUT = 20.0
LEASE_TIMEOUT = 5.0  # well under the Lease's duration, so that one slow answer does not lose it
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
_EVENTS = "/api/v1/namespaces/{ns}/events"
PAGE = 500  # objects per answer to a list
_WRITTEN = {
    "InferenceService": kinds.SERVICES,
    "ServingRuntime": kinds.RUNTIMES,
    "PodDisruptionBudget": kinds.BUDGETS,
}


async def load_configuration() -> client.Configuration:
    """In-cluster service account, else the kubeconfig. Raises NoConfiguration if there is neither."""
    loaded = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=loaded)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        try:
            await config.load_kube_config(client_configuration=loaded)  # type: ignore[no-untyped-call]
        except (config.ConfigException, OSError) as error:
            raise NoConfiguration(
                f"no cluster to work in: this is no pod with a service account, and there is no usable "
                f"kubeconfig in $KUBECONFIG or ~/.kube/config ({error})"
            ) from error
    return loaded


class Cluster:
    """Requests to the API server, a bounded number of them at a time. `see` is told what writes answer, as a
    watch's event.
    """

    def __init__(self, configuration: client.Configuration, see: See, settings: Settings) -> None:
        self._client = client.ApiClient(configuration)
        self._see, self._class = see, settings.watch_class
        self._turns = asyncio.Semaphore(settings.api_requests)

    @classmethod
    async def connect(cls, see: See, settings: Settings) -> Cluster:
        return cls(await load_configuration(), see, settings)

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    # Reading

    async def events(self, namespace: str, kind: str, name: str) -> tuple[Json, ...]:
        """What was told of one object, the latest hour or so."""
        about = f"involvedObject.kind={kind},involvedObject.name={name}"
        query = {"fieldSelector": about, "limit": str(PAGE)}
        answer = await self._request("GET", _EVENTS.format(ns=quote(namespace)), query)
        return tuple(answer["items"])

    async def list(self, kind: Kind, namespace: str = "") -> tuple[list[Json], int]:
        """All objects of a kind that concern us, and the resourceVersion as of which that is so."""
        items: list[Json] = []
        query = {"limit": str(PAGE), "labelSelector": kind.selector_for(self._class)}
        while True:
            answer = await self._request("GET", kind.path(namespace), query)
            # Lists of built-in kinds name the kind once, for all of them.
            what = {"apiVersion": answer["apiVersion"], "kind": answer["kind"].removesuffix("List")}
            items += [what | item for item in answer["items"]]
            metadata = answer["metadata"]
            if not metadata.get("continue"):
                return items, int(metadata["resourceVersion"])
            query["continue"] = metadata["continue"]

    async def confirm(self, observed: Observed) -> None:
        """Raises ApiError (404) unless this very LLMDeployment is still there; what is instead, is seen. By a
        list: there is no right to get one.
        """
        query = {"fieldSelector": f"metadata.name={observed.name}"}
        query["labelSelector"] = kinds.MODELS.selector_for(self._class)
        answer = await self._request("GET", kinds.MODELS.path(observed.namespace), query)
        found = answer["items"]
        if any(item["metadata"]["uid"] == observed.uid for item in found):
            return
        for item in found:
            self._see(kinds.MODELS, "ADDED", item)
        if not found:
            version = {"resourceVersion": answer["metadata"]["resourceVersion"]}
            self._see(kinds.MODELS, "DELETED", {"metadata": observed.owner["metadata"] | version})
        raise ApiError(404, "NotFound", f"LLMDeployment {observed.name} (uid {observed.uid}) is gone")

    # Writing

    async def apply(self, obj: Json, uid: str | None) -> Json:
        """Server-side apply to the object of this uid; None: there must be none of this name yet (409).

        Returns the object as it is then: admission may have changed what was written.
        """
        kind, metadata = _WRITTEN[obj["kind"]], obj["metadata"]
        path = kind.path(metadata["namespace"], metadata["name"])
        if uid is None and await self._get(path) is not None:
            raise ApiError(409, "AlreadyExists", f"{obj['kind']} {metadata['name']} exists already")
        return await self._write(
            kind,
            "PATCH",
            path,
            query={"force": "false" if uid is None else "true"},
            body=obj if uid is None else {**obj, "metadata": {**metadata, "uid": uid}},
            content_type=APPLY,
        )

    async def write_status(self, observed: Observed, status: Json) -> Json:
        """Returns the resource as it is then: an older CRD may know less than was written, and that is left
        out. A server-side apply it would refuse as a whole.
        """
        same = {"op": "test", "path": "/metadata/uid", "value": observed.uid}
        return await self._write(
            kinds.MODELS,
            "PATCH",
            kinds.MODELS.path(observed.namespace, observed.name) + "/status",
            query={},
            body=[same, {"op": "add", "path": "/status", "value": status}],
            content_type=JSON_PATCH,
        )

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        body = {"preconditions": {"uid": uid}}
        try:
            await self._request("DELETE", _WRITTEN[kind].path(namespace, name), body=body)
        except ApiError as error:
            if error.code != 404:
                raise

    async def scale(self, deployment: Json, replicas: int) -> None:
        """PUT /scale of a Deployment as it was observed. 409 when it has changed since."""
        metadata = deployment["metadata"]
        namespace, name = metadata["namespace"], metadata["name"]
        known = {"name": name, "namespace": namespace, "resourceVersion": metadata["resourceVersion"]}
        answer = await self._request(
            "PUT",
            kinds.DEPLOYMENTS.path(namespace, name) + "/scale",
            query={"fieldManager": names.FIELD_MANAGER},
            body={
                "apiVersion": "autoscaling/v1",
                "kind": "Scale",
                "metadata": known,
                "spec": {"replicas": replicas},
            },
        )
        # The answer is a Scale. Nothing but the count can have changed, or it would have been refused.
        version = answer["metadata"]["resourceVersion"]
        changed = metadata | {"resourceVersion": version, "generation": metadata["generation"] + 1}
        spec = {**deployment["spec"], "replicas": replicas}
        self._see(kinds.DEPLOYMENTS, "MODIFIED", {**deployment, "metadata": changed, "spec": spec})

    async def set_deletion_cost(self, pod: Json, cost: str | None) -> None:
        await self._annotate(pod, names.DELETION_COST, cost)

    async def set_adapters(self, pod: Json, text: str | None) -> None:
        await self._annotate(pod, names.ANNOTATION_ADAPTERS, text)

    async def _annotate(self, pod: Json, key: str, value: str | None) -> None:
        """Of just this pod: 409 if another one has its name by now."""
        metadata = pod["metadata"]
        path = kinds.PODS.path(metadata["namespace"], metadata["name"])
        body = {"metadata": {"uid": metadata["uid"], "annotations": {key: value}}}
        await self._write(kinds.PODS, "PATCH", path, query={}, body=body, content_type=MERGE)

    async def create_event(self, namespace: str, event: Json) -> None:
        await self._request("POST", _EVENTS.format(ns=quote(namespace)), body=event)

    # The Lease: never behind other requests

    async def get_lease(self, namespace: str, name: str) -> Json | None:
        return await self._get(_lease(namespace, name), LEASE_TIMEOUT)

    async def write_lease(self, namespace: str, name: str, lease: Json, create: bool) -> Json:
        method, path = ("POST", _lease(namespace)) if create else ("PUT", _lease(namespace, name))
        return await self._send(method, path, body=lease, timeout=LEASE_TIMEOUT)

    # Plumbing

    async def _get(self, path: str, timeout: float = REQUEST_TIMEOUT) -> Json | None:
        try:
            return await self._send("GET", path, timeout=timeout)
        except KindMissing:
            raise
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def _write(self, kind: Kind, method: str, path: str, query: dict[str, str], **more: Any) -> Json:
        """A write whose answer is the object as it is then."""
        answer = await self._request(method, path, {"fieldManager": names.FIELD_MANAGER, **query}, **more)
        self._see(kind, "MODIFIED", answer)
        return answer

    async def _request(
        self, method: str, path: str, query: dict[str, str] | None = None, **more: Any
    ) -> Json:
        async with self._turns:
            return await self._send(method, path, query, **more)

    async def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float = REQUEST_TIMEOUT,
    ) -> Json:
        _, url, headers, _, _ = await self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            auth_settings=["BearerToken"],
        )
        try:
            response = await self._client.rest_client.request(  # type: ignore[no-untyped-call]
                method, url, headers=headers, body=body, _request_timeout=timeout
            )
            data = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(f"API server: {type(error).__name__}: {error}") from error
        if response.status >= 400:
            raise of_answer(response.status, data)
        decoded: Json = orjson.loads(data) if data else {}
        return decoded


def _lease(namespace: str, name: str = "") -> str:
    base = f"/apis/coordination.k8s.io/v1/namespaces/{quote(namespace)}/leases"
    return f"{base}/{quote(name)}" if name else base
