"""A volume driver whose disks are folders: attached to one node at a time, then mounted there.

Kubernetes' own attach-detach controller and kubelet call it (as a FlexVolume, which is one executable, where
a CSI driver would be a server), so who may attach what, and the words about it, are theirs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

DRIVER = "localcluster/folder"


def install(plugins: Path) -> None:
    """Make the executable where the programs look for it that are told to look in ``plugins``."""
    vendor, name = DRIVER.split("/")
    program = plugins / f"{vendor}~{name}" / name
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{Path(__file__).resolve()}" "$@"\n')
    program.chmod(0o755)


def answer(call: str, arguments: list[str]) -> dict[str, Any]:
    """What the caller is told. Raises CalledProcessError where mounting fails."""
    match call, arguments:
        case "init", _:
            return {"capabilities": {"attach": True, "fsGroup": False}}
        case "attach", [options, _node]:
            return {"device": json.loads(options)["folder"]}
        case "waitforattach", [device, _options]:
            return {"device": device}
        case "isattached", _:
            return {"attached": True}  # what the controller remembers holds
        case "mountdevice", [target, device, _options]:
            Path(target).mkdir(parents=True, exist_ok=True)
            # Read-only, and a file system of its own: the kubelet lets go of none that is mounted twice.
            layers = f"lowerdir={device}:{target}"
            mount = ["mount", "-t", "overlay", "-o", layers, "overlay", target]
            subprocess.run(mount, check=True, capture_output=True)
        case "unmountdevice", [target]:
            subprocess.run(["umount", target], check=True, capture_output=True)
        case "detach", _:
            pass
        case _:
            return {"status": "Not supported"}
    return {}


def main() -> None:
    try:
        told = {"status": "Success", **answer(sys.argv[1], sys.argv[2:])}
    except subprocess.CalledProcessError as error:
        told = {"status": "Failure", "message": error.stderr.decode()}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
