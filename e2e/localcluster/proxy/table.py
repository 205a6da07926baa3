"""From Services and EndpointSlices, as the API server's JSON has them, to who serves what. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True, order=True)
class Address:
    """An IPv4 address and a TCP port."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}"


Table = dict[Address, tuple[Address, ...]]


def build_table(services: Iterable[Object], slices: Iterable[Object]) -> Table:
    """Where each Service listens (ClusterIP and port) and the endpoints new connections may go to, sorted.

    The endpoints are the ready ones; if there are none, the terminating ones that still serve, as in
    kube-proxy. Headless and ExternalName Services have no address of their own and are left out.
    """
    slices_of: defaultdict[tuple[str, str], list[Object]] = defaultdict(list)
    for each in slices:
        metadata = each["metadata"]
        service_name = (metadata.get("labels") or {}).get("kubernetes.io/service-name", "")
        if each["addressType"] == "IPv4":
            slices_of[metadata["namespace"], service_name].append(each)
    table: Table = {}
    for service in services:
        metadata, spec = service["metadata"], service["spec"]
        own_slices = slices_of[metadata["namespace"], metadata["name"]]
        for port in spec.get("ports") or ():
            if port.get("protocol", "TCP") == "TCP":
                endpoints = _endpoints(own_slices, port.get("name") or "")
                table.update({Address(ip, port["port"]): endpoints for ip in cluster_ips(service)})
    return table


def cluster_ips(service: Object) -> list[str]:
    """The Service's own IPv4 addresses."""
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        return []
    ips = spec.get("clusterIPs") or [spec.get("clusterIP") or "None"]
    return [ip for ip in ips if ip != "None" and ":" not in ip]


def _endpoints(slices: Iterable[Object], port_name: str) -> tuple[Address, ...]:
    """The endpoints of one Service port. Slices name ports as the Service does, with the pods' numbers."""
    ready: set[Address] = set()
    leaving: set[Address] = set()
    for each in slices:
        ports = [
            port["port"]
            for port in each.get("ports") or ()
            if (port.get("name") or "") == port_name
            and port.get("protocol", "TCP") == "TCP"
            and port.get("port")
        ]
        for endpoint in each.get("endpoints") or ():
            conditions = endpoint.get("conditions") or {}
            addresses = {Address(endpoint["addresses"][0], port) for port in ports}
            # Unknown means ready and serving; ready is also true for all with publishNotReadyAddresses.
            if conditions.get("ready", True):
                ready |= addresses
            elif conditions.get("serving", True) and conditions.get("terminating", False):
                leaving |= addresses
    return tuple(sorted(ready or leaving))
