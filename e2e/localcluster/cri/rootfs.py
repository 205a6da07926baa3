"""A container's view of the file system, built in `container_init` before the command starts.

The root is a small tmpfs that shows the host's top-level folders read-only, has folders of its own where
programs write (`/tmp`, `/run`, ...), a minimal `/dev` and a fresh `/proc`. The pod's volumes are bound into
it. A mount point that the host lacks is made by covering its parent with a tmpfs that shows the parent's
entries: no host file is ever created or changed, and the container can write only to its own folders and
its volumes.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from localcluster.machine.syscalls import (
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    bind,
    detach,
    mount,
    pivot_root,
    set_readonly,
)

FRESH = ("tmp", "run", "mnt")  # folders at the root that a container gets empty
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}


@dataclass(frozen=True)
class Mount:
    """Show the host's file or folder `source` at `target`."""

    source: str
    target: str
    readonly: bool = False


def enter(mounts: list[Mount], image_paths: list[str], *, readonly: bool, scratch: str) -> None:
    """Make the described view this process's root. The caller has a mount namespace of its own.

    `scratch` is an empty folder to build on. `image_paths` are shown read-only where they are not visible
    anyway. `readonly` is `readOnlyRootFilesystem`: only the volumes and /dev stay writable. Raises OSError
    or ValueError.
    """
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    shown = [Mount(path, path, readonly=True) for path in image_paths]
    # Sources are opened now, while their paths still mean what the host means by them.
    sources = {entry: _open_path(entry.source) for entry in (*shown, *mounts)}
    layers = _build_base(scratch)
    pivot_root(scratch, scratch + "/.host")
    os.chdir("/")
    _show_missing(shown, sources, layers)
    for entry in sorted(mounts, key=lambda entry: len(PurePosixPath(entry.target).parts)):
        _bind_volume(sources[entry], entry, layers)
    _show_missing(shown, sources, layers)  # a volume on /tmp hides what the image holds below it
    for fd in sources.values():
        os.close(fd)
    detach("/.host")
    os.rmdir("/.host")
    if readonly:
        for layer in layers:
            set_readonly(layer, True)


def _build_base(root: str) -> list[str]:
    """Mount the root at `root`; return its own tmpfs mounts, as seen from inside."""
    mount("tmpfs", root, "tmpfs", MS_NOSUID, "mode=755")
    _show_entries("/", root, skip={"proc", "sys", "dev", "var", "lost+found", *FRESH})
    os.mkdir(f"{root}/var")
    _show_entries("/var", f"{root}/var", skip={"tmp"})
    set_readonly(root, True, recursive=True)
    set_readonly(root, False)
    for folder in (*FRESH, "var/tmp"):
        os.mkdir(f"{root}/{folder}")
        os.chmod(f"{root}/{folder}", 0o755 if folder in ("run", "mnt") else 0o1777)
    for folder in ("proc", "sys", "dev", ".host"):
        os.mkdir(f"{root}/{folder}")
    _mount_proc(f"{root}/proc")
    bind("/sys", f"{root}/sys")
    set_readonly(f"{root}/sys", True, recursive=True)
    _fill_dev(f"{root}/dev")
    return ["/"]


def _mount_proc(target: str) -> None:
    try:
        mount("proc", target, "proc", MS_NOSUID | MS_NOEXEC)
    except PermissionError:  # where parts of the host's /proc are masked, the kernel refuses a fresh one
        bind("/proc", target)


def _fill_dev(dev: str) -> None:
    mount("tmpfs", dev, "tmpfs", MS_NOSUID, "mode=755")
    for name in DEVICES:
        if os.path.exists(f"/dev/{name}"):
            _touch(f"{dev}/{name}")
            bind(f"/dev/{name}", f"{dev}/{name}")
    for name, points_at in DEVICE_LINKS.items():
        os.symlink(points_at, f"{dev}/{name}")
    os.mkdir(f"{dev}/shm")
    mount("tmpfs", f"{dev}/shm", "tmpfs", MS_NOSUID, "mode=1777")


def _show_entries(source: str, target: str, skip: set[str]) -> None:
    """Make each entry of the folder `source` appear in the empty folder `target`."""
    for name in sorted(set(os.listdir(source)) - skip):
        there, here = f"{source}/{name}", f"{target}/{name}"
        mode = os.lstat(there).st_mode
        if stat.S_ISLNK(mode):
            os.symlink(os.readlink(there), here)
            continue
        if stat.S_ISDIR(mode):
            os.mkdir(here)
        else:
            _touch(here)
        bind(there, here)


def _show_missing(image: list[Mount], sources: Mapping[Mount, int], layers: list[str]) -> None:
    for entry in image:
        if not os.path.exists(entry.target):
            _bind_volume(sources[entry], entry, layers)


def _bind_volume(source_fd: int, entry: Mount, layers: list[str]) -> None:
    is_folder = stat.S_ISDIR(os.fstat(source_fd).st_mode)
    target = _ensure_mount_point("/" + entry.target, is_folder, layers)
    bind(f"/proc/self/fd/{source_fd}", target)
    if entry.readonly:
        set_readonly(target, True, recursive=True)


def _ensure_mount_point(target: str, is_folder: bool, layers: list[str]) -> str:
    """Make `target` exist as a folder or a file, like what will be bound there; return its real path."""
    target = os.path.realpath(target)  # /var/run/secrets is in /run; resolv.conf may dangle into a fresh /run
    if os.path.exists(target):
        if os.path.isdir(target) != is_folder:
            kind, other = ("folder", "file") if is_folder else ("file", "folder")
            raise ValueError(f"cannot mount a {kind} on {target}: the image has a {other} there")
        return target
    parent = _ensure_mount_point(os.path.dirname(target), True, layers)
    try:
        _make(target, is_folder)
    except OSError:  # the parent is the host's: read-only, or not ours to write to
        _cover(parent)
        layers.append(parent)
        _make(target, is_folder)
    return target


def _cover(folder: str) -> None:
    """Put a tmpfs over `folder` that shows the same entries."""
    fd = _open_path(folder)
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        mount("tmpfs", folder, "tmpfs", MS_NOSUID, f"mode={mode | 0o700:o}")
        _show_entries(f"/proc/self/fd/{fd}", folder, skip=set())
    finally:
        os.close(fd)


def _make(path: str, is_folder: bool) -> None:
    if is_folder:
        os.mkdir(path, 0o755)
    else:
        _touch(path)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _open_path(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_CLOEXEC)
