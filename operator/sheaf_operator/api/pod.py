"""spec.pod."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sheaf_operator.api.affinity import Affinity
from sheaf_operator.api.env import Env
from sheaf_operator.api.fields import ApiModel, LocalRef, ObjectName
from sheaf_operator.api.labels import LabelMap, PodAnnotations, PodLabels
from sheaf_operator.api.placement import Toleration, TopologySpread


class Pod(ApiModel):
    """What the pods need beyond the engine: image, placement, identity."""

    image: Annotated[
        str | None,
        Field(min_length=1, max_length=512, pattern=r"^[^\s{}]+$", description="The runtime's image."),
    ] = None
    env: Env = Field(default_factory=list)
    labels: Annotated[PodLabels, Field(description="Labels of the pods.")] = Field(default_factory=dict)
    annotations: Annotated[PodAnnotations, Field(description="Annotations of the pods.")] = Field(
        default_factory=dict
    )
    node_selector: Annotated[LabelMap, Field(description="Labels of the nodes to run on.")] = Field(
        default_factory=dict
    )
    tolerations: Annotated[
        list[Toleration],
        Field(
            max_length=32,
            description="Taints of nodes to put up with.",
            json_schema_extra={"x-kubernetes-list-type": "atomic"},
        ),
    ] = Field(default_factory=list)
    affinity: Annotated[
        Affinity | None, Field(description="Where the pods may and should run, as in a pod.")
    ] = None
    topology_spread_constraints: Annotated[
        list[TopologySpread],
        Field(
            max_length=8,
            description="How replicas spread over zones or nodes.",
            json_schema_extra={"x-kubernetes-list-map-keys": ["topologyKey", "whenUnsatisfiable"]},
        ),
    ] = Field(default_factory=list)
    service_account_name: Annotated[
        ObjectName | None, Field(description="ServiceAccount of the pods; its token is not mounted.")
    ] = None
    image_pull_secrets: Annotated[
        list[LocalRef],
        Field(
            max_length=8,
            description="Secrets to pull the image with.",
            json_schema_extra={"x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    priority_class_name: Annotated[ObjectName | None, Field(description="PriorityClass of the pods.")] = None
    runtime_class_name: Annotated[ObjectName | None, Field(description="RuntimeClass of the pods.")] = None
