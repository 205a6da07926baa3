"""The user's kubectl: every way to log in, context and proxy that it knows works here too."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from sheaf_operator.api.names import PORT, selector
from sheaf_operator.cluster.reading import Reading, parse

Json = dict[str, Any]
TIMEOUT = 20.0
_MODELS = "/apis/sheaf.dev/v1alpha1/namespaces/{ns}/llmdeployments"
_PODS = "/api/v1/namespaces/{ns}/pods"


class Refused(Exception):
    """What stands in the way, and what to do about it, in one line."""


class Failed(Refused):
    """kubectl ended with an error; its own words."""


Run = Callable[[list[str]], str]


def run(arguments: list[str]) -> str:
    """What kubectl prints. Raises Refused with its own words."""
    try:
        done = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, timeout=TIMEOUT)
    except FileNotFoundError:
        raise Refused("kubectl is not on PATH; install it, since the cluster is read with it") from None
    except subprocess.TimeoutExpired:
        raise Refused(
            f"the cluster gave no answer within {TIMEOUT:.0f} s; is this the right context?"
        ) from None
    if done.returncode != 0:
        raise Failed(" ".join(done.stderr.split()) or f"kubectl ended with status {done.returncode}")
    return done.stdout


class Kubectl:
    """`options` go before each call: --kubeconfig, --context."""

    def __init__(self, options: list[str], call: Run = run) -> None:
        self._options, self._call = options, call

    def namespace(self) -> str:
        """That of the present context; `default` where there is no context, as inside a pod."""
        path = "jsonpath={.contexts[0].context.namespace}"
        try:
            found = self._call([*self._options, "config", "view", "--minify", "--output", path])
        except Failed:
            return "default"
        return found.strip() or "default"

    def model(self, namespace: str, name: str) -> Json:
        """The LLMDeployment. Raises Refused."""
        path = f"{_MODELS.format(ns=quote(namespace))}/{quote(name)}"
        try:
            return self._object(path)
        except Failed as error:
            raise Refused(explain(str(error), namespace, name)) from None

    def pods(self, namespace: str, name: str) -> list[Json]:
        path = f"{_PODS.format(ns=quote(namespace))}?labelSelector={quote(selector(name))}"
        found: list[Json] = self._object(path).get("items") or []
        return found

    def readings(self, namespace: str, pods: Iterable[str], tls: bool) -> dict[str, Reading | str]:
        """Each pod's load by way of the API server, or in words why it is not known."""

        def read(pod: str) -> Reading | str:
            target = f"{'https:' if tls else ''}{quote(pod)}:{PORT}"
            try:
                return parse(self._raw(f"{_PODS.format(ns=quote(namespace))}/{target}/proxy/metrics"))
            except (Refused, ValueError) as error:
                return str(error)

        names = list(pods)
        with ThreadPoolExecutor(max_workers=8) as pool:
            return dict(zip(names, pool.map(read, names), strict=True))

    def _object(self, path: str) -> Json:
        answer = self._raw(path)
        try:
            found = json.loads(answer)
        except ValueError:
            found = None
        if not isinstance(found, dict):  # such as the login page of a proxy
            raise Refused(f"what answers is no Kubernetes API server: {' '.join(answer.split())[:80]!r}")
        return found

    def _raw(self, path: str) -> str:
        return self._call([*self._options, "get", "--raw", path])


def explain(words: str, namespace: str, name: str) -> str:
    """kubectl's words about an LLMDeployment that was not handed out, with what to do."""
    if "Forbidden" in words or "forbidden" in words:
        return f"you may not read LLMDeployments in {namespace}; ask for the role `view` there ({words})"
    if "could not find the requested resource" in words or "page not found" in words:
        return (
            "this cluster has no LLMDeployments: Sheaf's CRD is not installed (helm install, docs/using.md)"
        )
    if "NotFound" in words:
        return f"no LLMDeployment {name} in {namespace}; `kubectl get llmd --all-namespaces` lists them"
    return f"no answer from a cluster: {words}"
