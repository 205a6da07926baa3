"""The namespace under the local cluster: rootless, private, gone without trace however its owner ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from localcluster.cluster.waiting import wait_until
from localcluster.machine.launcher import ComponentFailed, Launcher
from localcluster.machine.leftovers import processes_that_mention

# A process that is hard to get rid of: it ignores polite signals and has children in a session of their own.
STUBBORN = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
print('up', flush=True)
time.sleep(600)
"""
ECHO = """
import socket
server = socket.create_server(('172.30.0.1', 7000))
while True:
    connection, _ = server.accept()
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.sendall(b' end')
    connection.close()
"""


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    with Launcher() as running:
        yield running


def mentioned_in_mounts(text: str) -> bool:
    return text in Path("/proc/self/mounts").read_text()


def start_stubborn(launcher: Launcher) -> None:
    argv = [sys.executable, "-c", STUBBORN, str(launcher.folder)]
    launcher.start("stubborn", argv)
    launcher.wait_ready("stubborn", lambda: "up" in launcher.log_tail("stubborn"), 10)


def test_nothing_is_left_after_stop() -> None:
    launcher = Launcher()
    start_stubborn(launcher)
    launcher.run(["/bin/sh", "-c", f"mkdir {launcher.folder}/m && mount -t tmpfs none {launcher.folder}/m"])
    folder = str(launcher.folder)
    assert len(processes_that_mention(folder)) >= 4  # keeper, process 1, the stubborn one and its child
    assert not mentioned_in_mounts(folder)  # its mounts are its own
    launcher.stop()
    assert processes_that_mention(folder) == []
    assert not launcher.folder.exists()


@pytest.mark.parametrize("victim", ["owner", "keeper"])
def test_nothing_is_left_when_killed(victim: str) -> None:
    program = f"""
import sys, time
from localcluster.machine.launcher import Launcher
launcher = Launcher()
launcher.start("stubborn", [sys.executable, "-c", {STUBBORN!r}, str(launcher.folder)])
launcher.wait_ready("stubborn", lambda: "up" in launcher.log_tail("stubborn"), 10)
print(launcher.folder, launcher._keeper.pid, flush=True)
launcher._keeper.wait()
launcher.stop()
"""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=env
    ) as owner:
        assert owner.stdout is not None
        folder, keeper = owner.stdout.readline().split()
        assert processes_that_mention(folder)
        os.kill(owner.pid if victim == "owner" else int(keeper), signal.SIGKILL)
        owner.wait(20)
    wait_until(lambda: not processes_that_mention(folder), 10, "all processes are gone")
    wait_until(lambda: not Path(folder).exists(), 10, f"{folder} is gone")


def test_signals_are_not_ignored_inside(launcher: Launcher) -> None:
    """What the keeper ignores must not be inherited: a program stops at the first polite request."""
    launcher.start("sleeper", ["/bin/sleep", "600"])
    begin = time.monotonic()
    assert launcher.stop_process("sleeper") == -signal.SIGTERM
    assert time.monotonic() - begin < 5


def test_exit_codes_and_last_words_of_components(launcher: Launcher) -> None:
    launcher.start("broken", ["/bin/sh", "-c", "echo no such flag; exit 7"])
    with pytest.raises(ComponentFailed, match=r"broken ended with code 7:\nno such flag"):
        launcher.wait_ready("broken", lambda: False, 10)


def test_unknown_programs_are_an_error_of_the_call(launcher: Launcher) -> None:
    with pytest.raises(RuntimeError, match="No such file"):
        launcher.start("missing", ["/nonexistent/program"])


def test_var_lib_is_writable_inside_and_untouched_outside(launcher: Launcher) -> None:
    before = sorted(os.listdir("/var/lib"))
    command = "mkdir -p /var/lib/kubelet/x /var/log/containers && ls /var/lib"
    output = launcher.run(["/bin/sh", "-c", command])
    assert "kubelet" in output.split()
    assert {name for name in before if os.path.isdir(f"/var/lib/{name}")} <= set(output.split())
    assert sorted(os.listdir("/var/lib")) == before


def test_ports_taken_outside_are_free_inside(launcher: Launcher) -> None:
    """So neither another cluster nor a second of ours can be in the way."""
    program = "import socket, sys; socket.create_server(('127.0.0.1', int(sys.argv[1])))"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert subprocess.run([sys.executable, "-c", program, port], capture_output=True).returncode == 1
        launcher.run([sys.executable, "-c", program, port])


def test_names_fail_fast_inside(launcher: Launcher) -> None:
    begin = time.monotonic()
    program = "import socket; print(socket.gethostbyname('localhost')); socket.gethostbyname('example.com')"
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1(.|\n)*gaierror"):
        launcher.run([sys.executable, "-c", program])
    assert time.monotonic() - begin < 10


def test_connections_are_carried_in_with_half_close(launcher: Launcher) -> None:
    launcher.start("echo", [sys.executable, "-c", ECHO])
    port = launcher.forward("172.30.0.1", 7000)
    payload = os.urandom(1 << 20)

    def converse() -> bytes:
        received = bytearray()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                for start in range(0, len(payload), 1 << 14):
                    connection.sendall(payload[start : start + (1 << 14)])
                    # Read as we go: the echo stops reading when nobody takes its answers.
                    received.extend(connection.recv(1 << 14))
                connection.shutdown(socket.SHUT_WR)
                while data := connection.recv(1 << 16):
                    received.extend(data)
        except ConnectionError:
            return b""  # not listening yet
        return bytes(received)

    for _ in range(3):
        assert wait_until(converse, 10, "the echo answers") == payload + b" end"


def test_nothing_listening_inside_is_a_reset_outside(launcher: Launcher) -> None:
    port = launcher.forward("172.30.0.1", 7001)
    with (
        pytest.raises(ConnectionResetError),  # it may come before connect() has returned
        socket.create_connection(("127.0.0.1", port), timeout=5) as connection,
    ):
        connection.recv(1)


def test_refused_namespaces_say_what_to_do_instead(launcher: Launcher) -> None:
    """On a machine that forbids user namespaces, here made by a limit inside of our own."""
    program = """
from pathlib import Path
from localcluster.machine.launcher import Launcher, NamespaceUnavailable
Path('/proc/sys/user/max_user_namespaces').write_text('0')
try:
    Launcher()
except NamespaceUnavailable as error:
    print(error)
"""
    message = launcher.run([sys.executable, "-c", program]).strip()
    assert "SHEAF_E2E_KUBECONFIG" in message
    assert "\n" not in message
