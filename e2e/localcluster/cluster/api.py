"""A small client of the Kubernetes API for tests and the demo: objects are plain dictionaries.

It fetches discovery only for the groups it meets, applies server-side, and waits by watching.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import httpx

Object = dict[str, Any]
_FIELD_MANAGER = "sheaf-e2e"


class ApiError(RuntimeError):
    """The API server refused a request; ``code`` is the HTTP status, ``reason`` Kubernetes' word for it."""

    def __init__(self, response: httpx.Response) -> None:
        try:
            status = response.json()
            self.reason, message = str(status.get("reason", "")), str(status.get("message", ""))
        except (ValueError, AttributeError):
            self.reason, message = "", response.text
        self.code = response.status_code
        super().__init__(f"{response.request.method} {response.request.url.path}: {self.code} {message}")


class Api:
    """Talks to ``server`` with a bearer token. Safe from several threads."""

    def __init__(self, server: str, *, token: str | None = None, ca: str | None = None) -> None:
        verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=ca) if ca else True
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=server, verify=verify, headers=headers, timeout=30, trust_env=False
        )
        self._resources: dict[str, dict[str, tuple[str, bool]]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        self._http.close()

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Any request; raises ApiError for a status of 400 and above.

        "Too many requests" is tried again as the server asks: it also says so while a new resource starts.
        """
        for _ in range(10):
            response = self._http.request(method, path, **arguments)
            if response.status_code != 429 or "Retry-After" not in response.headers:
                break
            time.sleep(min(float(response.headers["Retry-After"]), 5.0))
        if response.status_code >= 400:
            raise ApiError(response)
        return response

    def healthy(self) -> bool:
        with warnings.catch_warnings():
            # A handshake that takes too long is given up, and its socket left to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            try:
                return self._http.get("/readyz", timeout=2).status_code == 200
            except httpx.HTTPError:
                return False

    def path(self, api_version: str, kind: str, namespace: str | None = None, name: str | None = None) -> str:
        """The URL path of an object, or of a collection where ``name`` is left out."""
        root = f"/api/{api_version}" if "/" not in api_version else f"/apis/{api_version}"
        plural, namespaced = self._resource(root, kind)
        scope = f"/namespaces/{namespace}" if namespaced and namespace else ""
        return f"{root}{scope}/{plural}" + (f"/{name}" if name else "")

    def _resource(self, root: str, kind: str) -> tuple[str, bool]:
        with self._lock:
            if kind not in self._resources.get(root, {}):
                found = self.request("GET", root).json()["resources"]
                self._resources[root] = {
                    r["kind"]: (r["name"], bool(r["namespaced"])) for r in found if "/" not in r["name"]
                }
            try:
                return self._resources[root][kind]
            except KeyError:
                raise LookupError(f"the API server knows no {kind} in {root}") from None

    def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object:
        return dict(self.request("GET", self.path(api_version, kind, namespace, name)).json())

    def find(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """Like ``get``, but None for an object that does not exist."""
        try:
            return self.get(api_version, kind, name, namespace)
        except ApiError as error:
            if error.code != 404:
                raise
            return None

    def list_objects(
        self, api_version: str, kind: str, namespace: str | None = None, *, labels: str | None = None
    ) -> list[Object]:
        """Objects of one kind, in one namespace or in all; ``labels`` is a selector such as ``app=x``."""
        answer = self.request(
            "GET", self.path(api_version, kind, namespace), params=_selectors(labels=labels)
        )
        document = answer.json()
        return [{"apiVersion": api_version, "kind": kind, **item} for item in document["items"]]

    def create(self, manifest: Object) -> Object:
        """Create an object; one of that name must not exist. Costs the API server less than ``apply``."""
        path = self.path(manifest["apiVersion"], manifest["kind"], manifest["metadata"].get("namespace"))
        return dict(self.request("POST", path, json=manifest).json())

    def apply(self, manifest: Object, *, field_manager: str = _FIELD_MANAGER) -> Object:
        """Create or update by server-side apply, taking over fields of other managers; returns the object."""
        metadata = manifest["metadata"]
        path = self.path(
            manifest["apiVersion"], manifest["kind"], metadata.get("namespace"), metadata["name"]
        )
        return dict(
            self.request(
                "PATCH",
                path,
                params={"fieldManager": field_manager, "force": "true"},
                headers={"Content-Type": "application/apply-patch+yaml"},
                content=json.dumps(manifest),
            ).json()
        )

    def patch(
        self,
        api_version: str,
        kind: str,
        name: str,
        patch: Object,
        namespace: str | None = None,
        *,
        subresource: str = "",
    ) -> Object:
        """JSON merge patch, of a subresource such as ``status`` or ``scale`` if one is named."""
        path = self.path(api_version, kind, namespace, name) + (f"/{subresource}" if subresource else "")
        headers = {"Content-Type": "application/merge-patch+json"}
        return dict(self.request("PATCH", path, headers=headers, content=json.dumps(patch)).json())

    def delete(
        self,
        api_version: str,
        kind: str,
        name: str,
        namespace: str | None = None,
        *,
        grace_seconds: int | None = None,
    ) -> None:
        """Delete an object, dependents in the background; one that is gone already is no error."""
        options: Object = {"propagationPolicy": "Background"}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            self.request("DELETE", self.path(api_version, kind, namespace, name), json=options)
        except ApiError as error:
            if error.code != 404:
                raise

    def watch(
        self,
        api_version: str,
        kind: str,
        namespace: str | None = None,
        *,
        labels: str | None = None,
        name: str | None = None,
        timeout: float,
    ) -> Iterator[list[Object]]:
        """Yield all matching objects now and after every change, for ``timeout`` seconds.

        A broken connection, such as one to a stopped API server, is made anew until the time is over.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                yield from self._watch_once(api_version, kind, namespace, _selectors(labels, name), left)
            except (httpx.HTTPError, ApiError) as error:
                if isinstance(error, ApiError) and error.code not in (404, 410, 429, 500, 503, 504):
                    raise
                time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))

    def _watch_once(
        self, api_version: str, kind: str, namespace: str | None, selectors: dict[str, str], timeout: float
    ) -> Iterator[list[Object]]:
        path = self.path(api_version, kind, namespace)
        document = self.request("GET", path, params=selectors, timeout=min(30.0, max(1.0, timeout))).json()
        objects = {
            o["metadata"]["uid"]: {"apiVersion": api_version, "kind": kind, **o} for o in document["items"]
        }
        yield list(objects.values())
        parameters = {
            **selectors,
            "watch": "true",
            "resourceVersion": document["metadata"]["resourceVersion"],
            "timeoutSeconds": str(max(1, round(timeout))),
        }
        with self._http.stream("GET", path, params=parameters, timeout=timeout + 1) as response:
            if response.status_code >= 400:
                response.read()
                raise ApiError(response)
            for line in response.iter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return  # for instance a resource version that is too old: list again
                if event["type"] == "DELETED":
                    objects.pop(event["object"]["metadata"]["uid"], None)
                else:
                    objects[event["object"]["metadata"]["uid"]] = event["object"]
                yield list(objects.values())

    def wait_for(
        self,
        api_version: str,
        kind: str,
        predicate: Callable[[list[Object]], Any],
        *,
        namespace: str | None = None,
        labels: str | None = None,
        name: str | None = None,
        timeout: float,
        describe: str,
    ) -> Any:
        """Watch until ``predicate(objects)`` is truthy and return what it returned.

        Raises TimeoutError that says what was awaited (``describe``) and what the objects were last.
        """
        last: list[Object] = []
        for last in self.watch(api_version, kind, namespace, labels=labels, name=name, timeout=timeout):
            if found := predicate(last):
                return found
        raise TimeoutError(f"not within {timeout:.0f} s: {describe}\n{_summary(kind, last)}")


def _selectors(labels: str | None = None, name: str | None = None) -> dict[str, str]:
    selectors = {}
    if labels:
        selectors["labelSelector"] = labels
    if name:
        selectors["fieldSelector"] = f"metadata.name={name}"
    return selectors


def _summary(kind: str, objects: list[Object]) -> str:
    """Names and status of the objects, short enough for a test's error message."""
    if not objects:
        return f"there was no such {kind}"
    lines = [f"{o['metadata']['name']}: {json.dumps(o.get('status', {}))[:1500]}" for o in objects[:10]]
    return "\n".join([f"{len(objects)} {kind}:", *lines])
