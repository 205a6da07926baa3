"""One demo at a time: two would share the cores, and the numbers of both would mean nothing."""

from __future__ import annotations

import hashlib
import os
import socket
import struct

from localcluster.obstacles import Obstacle, temporary_folder


def claim() -> socket.socket:
    """Keep what is returned for as long as no other demo of this user may run on this machine.

    The name is an address in memory, so there is no file that could be left behind; it stands for the user's
    temporary folder. Raises Obstacle.
    """
    place = f"{os.getuid()} {temporary_folder()}"
    address = f"\0sheaf-demo-{hashlib.sha256(place.encode()).hexdigest()[:16]}"
    claimed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claimed.bind(address)
    except OSError:
        claimed.close()
        pid = _holder(address)
        raise Obstacle(
            f"another demo runs here (process {pid}); wait for its end, or stop it: kill {pid}"
        ) from None
    claimed.listen()
    return claimed


def _holder(address: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        try:
            asking.connect(address)
        except OSError:  # it is starting or ending
            return "PID"
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return str(struct.unpack("3i", credentials)[0])
