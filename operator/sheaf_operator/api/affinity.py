"""spec.pod.affinity, with Kubernetes' names."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from sheaf_operator.api.fields import ApiModel, LabelName, rule, rules
from sheaf_operator.api.labels import LabelKey
from sheaf_operator.api.selectors import LabelSelector, NodeSelectorTerm, atomic

Weight = Annotated[int, Field(ge=1, le=100, description="How much this counts beside the others, 1 to 100.")]


class NodeSelector(ApiModel):
    """Nodes for which one of the terms holds."""

    node_selector_terms: Annotated[
        list[NodeSelectorTerm], atomic(16, "One of these must hold.", min_length=1)
    ]


class PreferredNodes(ApiModel):
    """Nodes that are better than others."""

    weight: Weight
    preference: Annotated[NodeSelectorTerm, Field(description="The nodes.")]


class NodeAffinity(ApiModel):
    """Which nodes."""

    required_during_scheduling_ignored_during_execution: Annotated[
        NodeSelector | None, Field(description="The nodes that may be used.")
    ] = None
    preferred_during_scheduling_ignored_during_execution: Annotated[
        list[PreferredNodes] | None, atomic(16, "The nodes that are better.")
    ] = None


class PodAffinityTerm(ApiModel):
    """Pods, and the domain (node, zone, ...) that is shared with them or not."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.labelSelector)"
                " || [has(self.matchLabelKeys) ? self.matchLabelKeys : [],"
                " has(self.mismatchLabelKeys) ? self.mismatchLabelKeys : []].all(keys, size(keys) == 0)",
                "matchLabelKeys and mismatchLabelKeys need a labelSelector: add one ({} for all pods)",
                fieldPath=".labelSelector",
            ),
            rule(
                "!has(self.matchLabelKeys) || !has(self.mismatchLabelKeys)"
                " || !self.matchLabelKeys.exists(key, key in self.mismatchLabelKeys)",
                "no key may be in both matchLabelKeys and mismatchLabelKeys",
                fieldPath=".mismatchLabelKeys",
            ),
        )
    )
    topology_key: Annotated[LabelKey, Field(description="Node label whose values are the domains.")]
    label_selector: Annotated[
        LabelSelector | None, Field(description="The pods; left out for none, {} for all.")
    ] = None
    namespaces: Annotated[
        list[LabelName] | None, atomic(16, "Namespaces of the pods; default: this one.")
    ] = None
    namespace_selector: Annotated[
        LabelSelector | None, Field(description="Namespaces of the pods by label; {} for all.")
    ] = None
    match_label_keys: Annotated[
        list[LabelKey] | None, atomic(8, "Labels in which the pods must be like this one.")
    ] = None
    mismatch_label_keys: Annotated[
        list[LabelKey] | None, atomic(8, "Labels in which the pods must differ from this one.")
    ] = None


class PreferredPods(ApiModel):
    """Domains that are better than others."""

    weight: Weight
    pod_affinity_term: Annotated[PodAffinityTerm, Field(description="The pods.")]


class PodAffinity(ApiModel):
    """With which pods."""

    required_during_scheduling_ignored_during_execution: Annotated[
        list[PodAffinityTerm] | None, atomic(16, "The domain must be that of these pods.")
    ] = None
    preferred_during_scheduling_ignored_during_execution: Annotated[
        list[PreferredPods] | None, atomic(16, "Domains of these pods are better.")
    ] = None


class PodAntiAffinity(ApiModel):
    """Without which pods."""

    required_during_scheduling_ignored_during_execution: Annotated[
        list[PodAffinityTerm] | None, atomic(16, "The domain must not be that of these pods.")
    ] = None
    preferred_during_scheduling_ignored_during_execution: Annotated[
        list[PreferredPods] | None, atomic(16, "Domains of these pods are worse.")
    ] = None


class Affinity(ApiModel):
    """Where the pods may and should run."""

    node_affinity: Annotated[NodeAffinity | None, Field(description="On which nodes.")] = None
    pod_affinity: Annotated[PodAffinity | None, Field(description="Near which pods.")] = None
    pod_anti_affinity: Annotated[PodAntiAffinity | None, Field(description="Away from which pods.")] = None
