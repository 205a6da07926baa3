"""A private machine inside this one: user, network, mount and process namespaces, without root.

What runs inside sees its own network (a node address and nothing of the world outside), its own process
numbers and its own mounts. When process 1 of it ends, for whatever reason, the kernel ends the rest.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
from pathlib import Path

from localcluster.obstacles import Obstacle

NODE_IP = "172.30.0.1"
SECOND_NODE_IP = "172.30.0.2"
NODE_NETWORK_BITS = 24

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x2, 0x4, 0x8
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

ALTERNATIVE = "use a cluster of yours instead: SHEAF_E2E_KUBECONFIG=~/.kube/config (with KServe in it)"


class NamespaceUnavailable(Obstacle):
    """This machine does not let an ordinary user make namespaces; the message says what to do instead."""


def _checked(result: int, action: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        if code in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL, errno.ENOSYS):
            raise NamespaceUnavailable(
                f"The local cluster needs user namespaces, and this machine refuses them "
                f"({action}: {os.strerror(code)}); {ALTERNATIVE}"
            )
        raise OSError(code, f"{action}: {os.strerror(code)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    arguments = (
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _checked(_libc.mount(*arguments), f"mount {kind or 'bind'} on {target}")


def enter() -> None:
    """Move this process into new user and network namespaces, and its next child into a process namespace.

    We become root in there, and only there: outside, we stay the user we were.
    """
    uid, gid = os.geteuid(), os.getegid()
    _checked(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWPID), "unshare")
    try:
        # A group map may be written without privileges only after giving up setgroups.
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except PermissionError as error:
        raise NamespaceUnavailable(
            f"The local cluster needs user namespaces, and this machine refuses them ({error}); {ALTERNATIVE}"
        ) from error


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send this process the signal ``number`` when the thread that forked it ends."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl")


def private_mounts(scratch: Path) -> None:
    """Give process 1 of the new process namespace its own mounts, ``/proc``, ``/var/lib`` and ``/var/log``.

    The kubelet insists on ``/var/lib/kubelet/device-plugins`` and ``/var/log/containers``, whatever its
    flags say. Both must neither need root nor appear on the machine outside. No name server can be reached
    from in here, so ``/etc/resolv.conf`` names none: a look-up then fails at once instead of after seconds.
    """
    _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    for folder in ("/var/lib", "/var/log"):
        _shadow(folder)
    for name, text in {
        "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
        "hosts": "127.0.0.1 localhost\n",
    }.items():
        if os.path.exists(f"/etc/{name}"):
            (scratch / name).write_text(text)
            _mount(str(scratch / name), f"/etc/{name}", None, _MS_BIND)


def _shadow(folder: str) -> None:
    """Cover ``folder`` with one in memory that shows the same subfolders; what is new stays in here."""
    original = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        names = os.listdir(folder)
        _mount("tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755,size=64m")
        for name in names:
            source, target = f"/proc/self/fd/{original}/{name}", f"{folder}/{name}"
            if os.path.islink(source):
                os.symlink(os.readlink(source), target)
            elif os.path.isdir(source):
                os.mkdir(target)
                _mount(source, target, None, _MS_BIND | _MS_REC)
    finally:
        os.close(original)


def private_network() -> None:
    """Bring ``lo`` up and give the nodes their addresses on a veth pair, with a default route through it.

    The API server and Services need a default route, and EndpointSlices refuse loopback addresses. Both ends
    stay in here, so whatever takes that route ends in here too.
    """
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")
        ip.link("add", ifname="node0", kind="veth", peer={"ifname": "node0-peer"})
        node = ip.link_lookup(ifname="node0")[0]
        ip.link("set", index=ip.link_lookup(ifname="node0-peer")[0], state="up")
        ip.link("set", index=node, state="up")
        for address in (NODE_IP, SECOND_NODE_IP):
            ip.addr("add", index=node, address=address, prefixlen=NODE_NETWORK_BITS)
        ip.route("add", family=socket.AF_INET, dst="0.0.0.0/0", oif=node, prefsrc=NODE_IP)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
