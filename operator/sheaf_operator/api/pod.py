"""spec.pod."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from sheaf_operator.api.affinity import Affinity
from sheaf_operator.api.containers import Container, Image, Probes, SecurityContext, containers
from sheaf_operator.api.env import Env
from sheaf_operator.api.fields import ApiModel, LocalRef, OptionalName, rules
from sheaf_operator.api.labels import LabelMap, PodAnnotations, PodLabels
from sheaf_operator.api.placement import Toleration, TopologySpread
from sheaf_operator.api.pod_rules import POD_RULES
from sheaf_operator.api.volumes import EngineMounts, Volume


class Pod(ApiModel):
    """What the pods need beyond the engine: image, placement, identity, volumes, further containers."""

    model_config = ConfigDict(json_schema_extra=rules(*POD_RULES))
    image: Annotated[Image | None, Field(description="The runtime's image.")] = None
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
        OptionalName, Field(description="ServiceAccount of the pods; its token is not mounted.")
    ] = None
    image_pull_secrets: Annotated[
        list[LocalRef],
        Field(
            max_length=8,
            description="Secrets to pull the image with.",
            json_schema_extra={"x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    priority_class_name: Annotated[OptionalName, Field(description="PriorityClass of the pods.")] = None
    runtime_class_name: Annotated[OptionalName, Field(description="RuntimeClass of the pods.")] = None
    security_context: Annotated[
        SecurityContext, Field(description="User and groups of the pods' containers.")
    ] = SecurityContext()
    probes: Annotated[Probes, Field(description="How patient the kubelet is with the runtime.")] = Probes()
    volumes: Annotated[
        list[Volume],
        Field(
            max_length=16,
            description="Volumes beside those that Sheaf and KServe make.",
            json_schema_extra={"x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = Field(default_factory=list)
    volume_mounts: EngineMounts = Field(default_factory=list)
    init_containers: Annotated[
        list[Container], containers("Containers that run to their end, in order, before the runtime starts.")
    ] = Field(default_factory=list)
    sidecars: Annotated[
        list[Container],
        containers("Containers that run beside the runtime: started before it and stopped after it."),
    ] = Field(default_factory=list)
