"""Pod networks: a namespace per pod, joined to the node by a veth pair, with plain routes and no bridge.

In the pod `eth0` has the pod's address and a default route to the node's; on the node each pod has a /32
route to its end of the pair, named after the address. So pods may bind 0.0.0.0 side by side, reach each
other and whatever the node holds (ClusterIPs on `lo`, the API server), and each can be cut off alone.

Namespaces are held by descriptors only: when this process is gone and the pod's processes are, so are they.
"""

import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from localcluster.machine import syscalls

log = logging.getLogger("cri.network")
T = TypeVar("T")

LINK_PREFIX = "pod-"
CONNECT_TIMEOUT_S = 5.0
_SCOPE_LINK = 253
# Containers have no privilege over their pod's network, yet may bind low ports, as under any runtime.
_POD_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start": "0"}


class AddressPool:
    """The pod addresses of a node. The one released longest ago is given out first."""

    def __init__(self, network: IPv4Network) -> None:
        first = network.network_address + 2  # the first one is often a gateway elsewhere
        self._free = deque(IPv4Address(n) for n in range(int(first), int(network.broadcast_address)))
        self._used: set[IPv4Address] = set()

    def take(self) -> IPv4Address:
        if not self._free:
            raise RuntimeError(f"all {len(self._used)} pod addresses are in use")
        address = self._free.popleft()
        self._used.add(address)
        return address

    def release(self, address: IPv4Address) -> None:
        self._used.remove(address)
        self._free.append(address)


@dataclass
class PodNamespaces:
    """Descriptors of a pod's namespaces. An empty address means the node's own network."""

    address: IPv4Address | None
    fds: list[tuple[int, int]]  # (descriptor, CLONE_NEW* flag)

    def close(self) -> None:
        """Take the pod off the network and let go of its namespaces; calling it again does nothing."""
        if self.fds and self.address is not None:
            delete_link(self.address)
        while self.fds:
            os.close(self.fds.pop()[0])


def prepare_node(pods: IPv4Network) -> None:
    """Remove what a killed predecessor may have left, and let pods reach each other through the node."""
    with IPRoute() as node:
        for link in node.get_links():
            name = str(link.get_attr("IFLA_IFNAME"))
            # Another node's runtime may have links beside ours.
            if name.startswith(LINK_PREFIX) and IPv4Address(int(name[len(LINK_PREFIX) :], 16)) in pods:
                node.link("del", index=link["index"])
    try:
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    except OSError as error:
        log.warning("pods cannot reach each other, only the node and Services: ip_forward: %s", error)


def create(
    address: IPv4Address | None, node_address: str, hostname: str, sysctls: Mapping[str, str]
) -> PodNamespaces:
    """Make a pod's namespaces; with no address it shares the node's network and host name."""
    if address is None:
        flags = syscalls.CLONE_NEWIPC
        return PodNamespaces(None, _in_new_namespaces(flags, lambda: _write_sysctls(sysctls)))
    flags = syscalls.CLONE_NEWNET | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC
    link = link_name(address)
    node_namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def set_up() -> None:
        if hostname:
            socket.sethostname(hostname)
        _write_sysctls({**_POD_SYSCTLS, **sysctls})
        with IPRoute() as pod:
            pod.link("add", ifname="eth0", kind="veth", peer={"ifname": link, "net_ns_fd": node_namespace})
            (eth0,) = pod.link_lookup(ifname="eth0")
            pod.link("set", index=1, state="up")
            pod.link("set", index=eth0, state="up")
            pod.addr("add", index=eth0, address=str(address), prefixlen=32)
            pod.route("add", dst=f"{node_address}/32", oif=eth0, scope=_SCOPE_LINK)
            pod.route("add", dst="default", gateway=node_address, oif=eth0)

    try:
        namespaces = PodNamespaces(address, _in_new_namespaces(flags, set_up))
    finally:
        os.close(node_namespace)
    try:
        restore(address, node_address)
    except BaseException:
        namespaces.close()
        raise
    return namespaces


def connect(namespaces: PodNamespaces, port: int) -> socket.socket:
    """A connection to the pod's own `localhost`, made in a thread of its own. Raises OSError."""
    made: list[socket.socket | OSError] = []

    def body() -> None:
        try:
            for fd, flag in namespaces.fds:
                if flag == syscalls.CLONE_NEWNET:
                    syscalls.setns(fd, flag)
            made.append(socket.create_connection(("localhost", port), CONNECT_TIMEOUT_S))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=body, name="pod-connect")
    thread.start()
    thread.join()
    if isinstance(made[0], OSError):
        raise made[0]
    made[0].settimeout(None)
    return made[0]


def link_name(address: IPv4Address) -> str:
    """The node's end of the pair of the pod with this address."""
    return f"{LINK_PREFIX}{int(address):08x}"


def cut(address: IPv4Address | str) -> None:
    """Cut one pod off: nothing gets in or out. Call it in the node's network namespace."""
    with IPRoute() as node:
        node.link("set", index=_find_link(node, IPv4Address(address)), state="down")


def restore(address: IPv4Address | str, node_address: str) -> None:
    """Connect a pod (again)."""
    with IPRoute() as node:
        index = _find_link(node, IPv4Address(address))
        node.link("set", index=index, state="up")  # a link that goes down loses its routes
        node.route("replace", dst=f"{address}/32", oif=index, prefsrc=node_address, scope=_SCOPE_LINK)


def delete_link(address: IPv4Address) -> None:
    with IPRoute() as node:
        for index in node.link_lookup(ifname=link_name(address)):
            try:
                node.link("del", index=index)
            except NetlinkError as error:
                log.warning("could not remove the link of %s: %s", address, error)


def _find_link(node: IPRoute, address: IPv4Address) -> int:
    found = node.link_lookup(ifname=link_name(address))
    if not found:
        raise LookupError(f"no pod has the address {address} here")
    return int(found[0])


def _write_sysctls(sysctls: Mapping[str, str]) -> None:
    for name, value in sysctls.items():
        path = Path("/proc/sys", name.replace(".", "/"))
        try:
            path.write_text(value)
        except OSError as error:
            raise RuntimeError(f"cannot set the sysctl {name} to {value!r}: {error}") from error


def _in_new_namespaces(flags: int, set_up: Callable[[], None]) -> list[tuple[int, int]]:
    """Run `set_up` in new namespaces and return descriptors that hold them.

    A thread of its own enters them: namespaces of this kind belong to a thread, and it takes them with it
    when it ends.
    """
    fds: list[tuple[int, int]] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            syscalls.unshare(flags)
            set_up()
            for name, flag in _NAMESPACE_FILES.items():
                if flags & flag:
                    fds.append((os.open(f"/proc/thread-self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), flag))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=body, name="pod-namespaces")
    thread.start()
    thread.join()
    if failures:
        for fd, _ in fds:
            os.close(fd)
        raise failures[0]
    return fds


_NAMESPACE_FILES = {
    "net": syscalls.CLONE_NEWNET,
    "uts": syscalls.CLONE_NEWUTS,
    "ipc": syscalls.CLONE_NEWIPC,
}
