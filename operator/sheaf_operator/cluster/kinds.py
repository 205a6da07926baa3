"""The kinds that the operator reads: where the API server has them and which of their objects count. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from sheaf_operator.api import names
from sheaf_operator.api.spec import GROUP, PLURAL, VERSION


@dataclass(frozen=True)
class Kind:
    """`selector` keeps other people's objects off the wire; whose an object is, its owner references say."""

    group: str
    version: str
    plural: str
    selector: str = ""

    @property
    def kserve(self) -> bool:
        """Whether it is missing as long as KServe is."""
        return self.group == "serving.kserve.io"

    def selector_for(self, operator_class: str) -> str:
        """Label selector of the objects to read; the class divides the resources among operators."""
        if self != MODELS:
            return self.selector
        return f"{names.LABEL_CLASS}={operator_class}" if operator_class else f"!{names.LABEL_CLASS}"

    def counts(self, labels: Mapping[str, str], operator_class: str) -> bool:
        """Whether an object with these labels is among those of `selector_for`."""
        if self != MODELS:
            return not self.selector or self.selector in labels
        return labels.get(names.LABEL_CLASS) == (operator_class or None)

    def path(self, namespace: str = "", name: str = "") -> str:
        """Of one object, of a namespace's objects, or of all."""
        base = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        inside = f"/namespaces/{quote(namespace)}" if namespace else ""
        return f"{base}{inside}/{self.plural}" + (f"/{quote(name)}" if name else "")


MODELS = Kind(GROUP, VERSION, PLURAL)
# All of these two are read: a foreign one may have our name, and one that lost its label is still ours.
SERVICES = Kind("serving.kserve.io", "v1beta1", "inferenceservices")
RUNTIMES = Kind("serving.kserve.io", "v1alpha1", "servingruntimes")
DEPLOYMENTS = Kind("apps", "v1", "deployments", names.LABEL_DEPLOYMENT)
REPLICA_SETS = Kind("apps", "v1", "replicasets", names.LABEL_DEPLOYMENT)
PODS = Kind("", "v1", "pods", names.LABEL_DEPLOYMENT)
# Other people's too: pods that two budgets select cannot be evicted at all.
BUDGETS = Kind("policy", "v1", "poddisruptionbudgets")

CHILDREN = (SERVICES, RUNTIMES, DEPLOYMENTS, REPLICA_SETS, PODS, BUDGETS)
ALL = (MODELS, *CHILDREN)
