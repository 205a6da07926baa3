"""Flux's view of an LLMDeployment: the expressions of manifests/gitops/flux.yaml, evaluated by the API
server, whose CEL library is also Flux's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import yaml
from localcluster.cluster import ApiError, Cluster, Object, wait_until
from sheaf_e2e.checkout import CHECKOUT
from waiting_states import CASES, Case

pytestmark = pytest.mark.cluster
GROUP, KIND = "waits.test.sheaf.dev", "Probe"  # takes what an LLMDeployment looks like, status and all
API = f"{GROUP}/v1"
POLICY_API = "admissionregistration.k8s.io/v1"


def verdict() -> str:
    """One expression over the three, in the order in which Flux asks them."""
    documents = yaml.safe_load_all((CHECKOUT / "manifests" / "gitops" / "flux.yaml").read_text())
    asked = next(d["spec"]["healthCheckExprs"][0] for d in documents if "healthCheckExprs" in d["spec"])
    fields = {
        name: re.sub(r"(?<![\w.'])(status|metadata)\.", r"object.\1.", asked[name])
        for name in ("inProgress", "failed", "current")
    }
    return (
        f"({fields['inProgress']}) ? 'InProgress' : ({fields['failed']}) ? 'Failed' : "
        f"({fields['current']}) ? 'Current' : 'InProgress'"
    )


def objects() -> list[Object]:
    """A kind without a status subresource, and a policy that refuses each object with the verdict on it."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"status": anything}}}
    return [
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"probes.{GROUP}"},
            "spec": {
                "group": GROUP,
                "scope": "Namespaced",
                "names": {"kind": KIND, "plural": "probes", "singular": "probe", "listKind": "ProbeList"},
                "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
            },
        },
        {
            "apiVersion": POLICY_API,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": "flux-waits"},
            "spec": {
                "matchConstraints": {
                    "resourceRules": [
                        {
                            "apiGroups": [GROUP],
                            "apiVersions": ["v1"],
                            "operations": ["CREATE"],
                            "resources": ["probes"],
                        }
                    ]
                },
                "validations": [{"expression": "false", "messageExpression": f"'<' + ({verdict()}) + '>'"}],
            },
        },
        {
            "apiVersion": POLICY_API,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": "flux-waits"},
            "spec": {"policyName": "flux-waits", "validationActions": ["Deny"]},
        },
    ]


def asked(cluster: Cluster, namespace: str, model: Object) -> str | None:
    """What Flux makes of it; None while the policy is not in force."""
    metadata = {**model["metadata"], "namespace": namespace}
    for field in ("uid", "resourceVersion", "creationTimestamp"):
        metadata.pop(field)
    probe = {"apiVersion": API, "kind": KIND, "metadata": metadata, "status": model.get("status", {})}
    path = f"/apis/{API}/namespaces/{namespace}/probes"
    try:
        cluster.api.request("POST", path, params={"dryRun": "All"}, json=probe)
    except ApiError as error:
        found = re.search(r"<(\w+)>", str(error))
        if found is None and error.code != 404:
            raise
        return found[1] if found else None
    return None


@pytest.fixture(scope="module")
def flux(cluster: Cluster) -> Iterator[tuple[Cluster, str]]:
    for obj in objects():
        cluster.api.apply(obj)
    with cluster.new_namespace("flux-waits") as namespace:
        wait_until(lambda: asked(cluster, namespace, CASES[0].model), 30, "the policy is in force")
        yield cluster, namespace
    for obj in reversed(objects()):
        cluster.api.delete(obj["apiVersion"], obj["kind"], obj["metadata"]["name"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_flux_waits_for_what_will_come_and_for_nothing_else(flux: tuple[Cluster, str], case: Case) -> None:
    model = {**case.model, "metadata": {**case.model["metadata"]}}
    if case.model["metadata"]["generation"] != 1:  # the API server gives 1: let the status be older
        model["status"] = {**case.model["status"], "observedGeneration": 0}
    assert asked(*flux, model) == case.flux
