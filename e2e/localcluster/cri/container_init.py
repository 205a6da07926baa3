"""Turns a fresh process into a container's command, or into a command run inside a container.

Started by `process.launch` as a small interpreter without site packages. It reads its `Spec` from one
inherited descriptor and speaks over another, `control`:

    init -> runtime     "PID\\n": the command's process, which waits
    runtime -> init     "g": init has been reaped, so the runtime is now that process's parent
    init -> runtime     why the command could not be started, or nothing; then the end of the stream

The command dies with the runtime: its parent-death signal is set once the runtime is its parent.
"""

import fcntl
import json
import os
import signal
import socket
import termios
from dataclasses import asdict, dataclass, field

from localcluster.cri import rootfs
from localcluster.machine import syscalls

FAILED_TO_START = 128  # the exit code of a container whose command could not be started, as in containerd


@dataclass(frozen=True)
class Root:
    """What a new container sees; see `rootfs.enter`."""

    scratch: str
    mounts: list[rootfs.Mount] = field(default_factory=list)
    image_paths: list[str] = field(default_factory=list)
    readonly: bool = False


@dataclass(frozen=True)
class Spec:
    """A command and where it runs.

    `namespaces` are descriptors to enter, each with its CLONE_NEW* flags: the pod's for a new container
    (`root` given), a pidfd of the container for a command in a running one (`root` None).
    """

    argv: list[str]
    env: dict[str, str]
    cwd: str
    uid: int
    gid: int
    namespaces: list[tuple[int, int]]
    root: Root | None = None
    no_new_privs: bool = False
    oom_score_adj: int = 0
    terminal: bool = False  # its streams are one, which becomes the session's terminal

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @staticmethod
    def from_json(text: bytes) -> "Spec":
        values = json.loads(text)
        if values["root"] is not None:
            values["root"]["mounts"] = [rootfs.Mount(**mount) for mount in values["root"]["mounts"]]
            values["root"] = Root(**values["root"])
        return Spec(**values)


def main(spec_fd: int, control_fd: int) -> None:
    with open(spec_fd, "rb") as spec_file:
        spec = Spec.from_json(spec_file.read())
    control = socket.socket(fileno=control_fd)
    os.set_inheritable(control_fd, False)
    try:
        for fd, flags in spec.namespaces:
            os.set_inheritable(fd, False)
            syscalls.setns(fd, flags)
        if spec.root is not None:
            syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)
        child = os.fork()  # only a child is in the new process namespace
    except OSError as error:
        control.sendall(f"0\ncannot enter the namespaces: {error}".encode())
        os._exit(FAILED_TO_START)
    if child:
        control.sendall(b"%d\n" % child)
        os._exit(0)
    try:
        _become(spec, control)
    except Exception as error:
        control.sendall(str(error).encode())
    os._exit(FAILED_TO_START)


def _become(spec: Spec, control: socket.socket) -> None:
    _tie_to_runtime(control)
    os.setsid()
    if spec.terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.umask(0o022)
    if spec.oom_score_adj > 0:  # lowering it would need a privilege
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(spec.oom_score_adj))
    if spec.root is not None:
        root = spec.root
        rootfs.enter(root.mounts, root.image_paths, readonly=root.readonly, scratch=root.scratch)
        _enter_user_namespace(spec.uid, spec.gid)
    if spec.no_new_privs:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    try:
        os.chdir(spec.cwd)
    except FileNotFoundError:
        os.makedirs(spec.cwd)  # as container engines do
        os.chdir(spec.cwd)
    # The interpreter ignores some, and so may whoever started us all: a shell with "&", nohup.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(spec.argv[0], spec.argv, spec.env)
    except OSError as error:
        found_none = isinstance(error, FileNotFoundError) and "/" not in spec.argv[0]
        why = "executable file not found in $PATH" if found_none else error.strerror
        raise RuntimeError(f"exec: {json.dumps(spec.argv[0])}: {why}") from error


def _tie_to_runtime(control: socket.socket) -> None:
    if control.recv(1) != b"g":
        os._exit(FAILED_TO_START)  # the runtime is gone
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    control.setblocking(False)
    try:
        control.recv(1)
    except BlockingIOError:  # nothing to read and not closed: the runtime was alive when the signal was set
        control.setblocking(True)
    else:
        os._exit(FAILED_TO_START)


def _enter_user_namespace(uid: int, gid: int) -> None:
    """Appear as `uid` and `gid`, with no privilege over the namespaces that the container is in.

    All ids map to the one that this process has outside, so files of the pod's volumes belong to the
    container.
    """
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} 0 1"), ("gid_map", f"{gid} 0 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
