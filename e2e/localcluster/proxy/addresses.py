"""Keeps the ClusterIPs on `lo`, so that connections to them arrive here."""

from collections.abc import Set
from typing import Protocol

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

LABEL = "lo:service"  # marks our addresses, so that a successor of a killed proxy knows them
_EEXIST = 17
_LOOPBACK = 1


class Addresses(Protocol):
    def hold(self, ips: Set[str]) -> None:
        """Hold these addresses from now on, and no others. Raises OSError."""


class LoopbackAddresses:
    """Needs the network namespace to be the caller's own (CAP_NET_ADMIN)."""

    def hold(self, ips: Set[str]) -> None:
        try:
            self._hold(ips)
        except NetlinkError as error:
            raise OSError(error.code, str(error)) from error

    def _hold(self, ips: Set[str]) -> None:
        with IPRoute() as route:
            held = {
                str(entry.get_attr("IFA_LOCAL"))
                for entry in route.get_addr(index=_LOOPBACK)
                if entry.get_attr("IFA_LABEL") == LABEL
            }
            for ip in held - ips:
                route.addr("del", index=_LOOPBACK, address=ip, prefixlen=32)
            for ip in ips - held:
                try:
                    route.addr("add", index=_LOOPBACK, address=ip, prefixlen=32, label=LABEL)
                except NetlinkError as error:
                    if error.code != _EEXIST:
                        raise
