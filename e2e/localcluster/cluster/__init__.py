"""The interface to a cluster: start or find one, speak to it, break it. Nobody imports what is behind it."""

from localcluster.cluster.api import Api, ApiError, Object
from localcluster.cluster.base import Cluster, CommandFailed
from localcluster.cluster.choose import KUBECONFIG_VARIABLE, open_cluster
from localcluster.cluster.external import ExternalCluster
from localcluster.cluster.faults import Faults
from localcluster.cluster.local import LocalCluster
from localcluster.cluster.node import Node
from localcluster.cluster.waiting import wait_until
from localcluster.machine.launcher import ComponentFailed

__all__ = [
    "KUBECONFIG_VARIABLE",
    "Api",
    "ApiError",
    "Cluster",
    "CommandFailed",
    "ComponentFailed",
    "ExternalCluster",
    "Faults",
    "LocalCluster",
    "Node",
    "Object",
    "open_cluster",
    "wait_until",
]
