"""The one file that talks to the API server. All else sees plain JSON and the errors named here."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from urllib.parse import quote

import aiohttp
from kubernetes.aio import client, config

from sheaf_operator.api import names
from sheaf_operator.api.spec import API_VERSION, KIND, PLURAL
from sheaf_operator.cluster.errors import ApiError, KindMissing, NoConfiguration, Unreachable, of_answer
from sheaf_operator.cluster.observed import Json, Observed, owned_by

REQUEST_TIMEOUT = 20.0
LEASE_TIMEOUT = 5.0  # well under the Lease's duration, so that one slow answer does not lose it
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
_LLMD = f"/apis/{API_VERSION}/namespaces/{{ns}}/{PLURAL}"
_ISVC = "/apis/serving.kserve.io/v1beta1/namespaces/{ns}/inferenceservices"
_RUNTIME = "/apis/serving.kserve.io/v1alpha1/namespaces/{ns}/servingruntimes"
_DEPLOYMENT = "/apis/apps/v1/namespaces/{ns}/deployments"
_PODS = "/api/v1/namespaces/{ns}/pods"
_EVENTS = "/api/v1/namespaces/{ns}/events"
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/{ns}/leases"
_APPLY_PATHS = {"InferenceService": _ISVC, "ServingRuntime": _RUNTIME}


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
    """Requests to the API server. Writes of children are counted in `writes` for metrics and tests."""

    def __init__(self, configuration: client.Configuration) -> None:
        self._client = client.ApiClient(configuration)
        self.writes = 0

    @classmethod
    async def connect(cls) -> Cluster:
        return cls(await load_configuration())

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    # Reading

    async def observe(self, namespace: str, name: str) -> Observed | None:
        """Everything about one LLMDeployment, read now; None once it is gone.

        Read rather than cached: a watch that was interrupted can miss deletions, a list cannot.
        """
        owner = await self._get(_LLMD, namespace, name)
        if owner is None:
            return None
        selected = names.selector(name)
        try:
            service, runtimes = await asyncio.gather(
                self._get(_ISVC, namespace, name), self._list(_RUNTIME, namespace, selected)
            )
        except KindMissing:
            return Observed(owner, kserve=False)
        deployment, pods = await asyncio.gather(
            self._get(_DEPLOYMENT, namespace, names.predictor_deployment(name)),
            self._list(_PODS, namespace, selected),
        )
        ours = service and deployment and owned_by(deployment, service["metadata"]["uid"])
        found = Observed(owner, True, service, (), deployment if ours else None, tuple(pods))
        return replace(found, runtimes=tuple(r for r in runtimes if found.owns(r)))

    # Writing

    async def apply(self, obj: Json, create: bool) -> Json:
        """Server-side apply. A new object must not clash with somebody else's (409); ours is taken back."""
        metadata = obj["metadata"]
        self.writes += 1
        return await self._request(
            "PATCH",
            _path(_APPLY_PATHS[obj["kind"]], metadata["namespace"], metadata["name"]),
            query={"fieldManager": names.FIELD_MANAGER, "force": "false" if create else "true"},
            body=obj,
            content_type=APPLY,
        )

    async def apply_status(self, observed: Observed, status: Json) -> None:
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": observed.name, "uid": observed.uid},
            "status": status,
        }
        await self._request(
            "PATCH",
            _path(_LLMD, observed.namespace, observed.name) + "/status",
            query={"fieldManager": names.FIELD_MANAGER, "force": "true"},
            body=body,
            content_type=APPLY,
        )

    async def delete_runtime(self, namespace: str, name: str, uid: str) -> None:
        self.writes += 1
        body = {"preconditions": {"uid": uid}}
        try:
            await self._request("DELETE", _path(_RUNTIME, namespace, name), body=body)
        except ApiError as error:
            if error.code != 404:
                raise

    async def scale(self, namespace: str, name: str, replicas: int, resource_version: str) -> None:
        """PUT /scale of the predictor Deployment. 409 when it changed since it was read."""
        self.writes += 1
        deployment = names.predictor_deployment(name)
        body = {
            "apiVersion": "autoscaling/v1",
            "kind": "Scale",
            "metadata": {
                "name": deployment,
                "namespace": namespace,
                "resourceVersion": resource_version,
            },
            "spec": {"replicas": replicas},
        }
        await self._request(
            "PUT",
            _path(_DEPLOYMENT, namespace, deployment) + "/scale",
            query={"fieldManager": names.FIELD_MANAGER},
            body=body,
        )

    async def set_deletion_cost(self, namespace: str, pod: str, cost: str | None) -> None:
        self.writes += 1
        body = {"metadata": {"annotations": {names.DELETION_COST: cost}}}
        query = {"fieldManager": names.FIELD_MANAGER}
        await self._request("PATCH", _path(_PODS, namespace, pod), query=query, body=body, content_type=MERGE)

    async def create_event(self, namespace: str, event: Json) -> None:
        await self._request("POST", _EVENTS.format(ns=quote(namespace)), body=event)

    # The Lease

    async def get_lease(self, namespace: str, name: str) -> Json | None:
        return await self._get(_LEASES, namespace, name, LEASE_TIMEOUT)

    async def write_lease(self, namespace: str, name: str, lease: Json, create: bool) -> Json:
        base = _LEASES.format(ns=quote(namespace))
        if create:
            return await self._request("POST", base, body=lease, timeout=LEASE_TIMEOUT)
        return await self._request("PUT", f"{base}/{quote(name)}", body=lease, timeout=LEASE_TIMEOUT)

    # Plumbing

    async def _get(
        self, template: str, namespace: str, name: str, timeout: float = REQUEST_TIMEOUT
    ) -> Json | None:
        try:
            return await self._request("GET", _path(template, namespace, name), timeout=timeout)
        except KindMissing:
            raise
        except ApiError as error:
            if error.code == 404:
                return None
            raise

    async def _list(self, template: str, namespace: str, selector: str) -> list[Json]:
        answer = await self._request("GET", template.format(ns=quote(namespace)), {"labelSelector": selector})
        items: list[Json] = answer["items"]
        return items

    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Json | None = None,
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
        decoded: Json = json.loads(data) if data else {}
        return decoded


def _path(template: str, namespace: str, name: str) -> str:
    return f"{template.format(ns=quote(namespace))}/{quote(name)}"
