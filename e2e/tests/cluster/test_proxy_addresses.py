"""ClusterIPs on `lo`, in a network namespace of their own."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import socket
from pyroute2 import IPRoute
from localcluster.proxy.addresses import LoopbackAddresses

def held():
    with IPRoute() as route:
        return sorted(str(a.get_attr("IFA_LOCAL")) for a in route.get_addr(index=1, family=socket.AF_INET))

with IPRoute() as route:
    route.link("set", index=1, state="up")
    route.addr("add", index=1, address="172.30.0.1", prefixlen=32)
addresses = LoopbackAddresses()
addresses.hold({"10.96.0.1", "10.96.0.2"})
print(held())
LoopbackAddresses().hold({"10.96.0.2", "10.96.0.3"})  # a successor knows what is a Service's
print(held())
LoopbackAddresses().hold({"172.30.0.1"})  # held by somebody else already
addresses.hold(set())
print(held())
"""


def test_exactly_the_wanted_addresses_are_held_and_others_left_alone():
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['10.96.0.1', '10.96.0.2', '127.0.0.1', '172.30.0.1']",
        "['10.96.0.2', '10.96.0.3', '127.0.0.1', '172.30.0.1']",
        "['127.0.0.1', '172.30.0.1']",
    ]
