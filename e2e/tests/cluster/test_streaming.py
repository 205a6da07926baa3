"""`kubectl exec`, `attach`, `cp` and `port-forward`, as on any cluster: the real kubectl says so."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from localcluster.cluster import Cluster, CommandFailed, LocalCluster, wait_until
from localcluster.cluster.workloads import pod

pytestmark = pytest.mark.cluster
ECHO = """
import socket, struct, threading
def serve(connection):
    while data := connection.recv(65536):
        connection.sendall(data)
        if data == b'break':
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            return connection.close()
    connection.sendall(b' end')
    connection.close()
server = socket.create_server(('127.0.0.1', 8000))  # of the pod alone: no other address leads there
while True:
    threading.Thread(target=serve, args=server.accept()[:1]).start()
"""
REPEAT = """
import sys
print('ready', flush=True)
for line in sys.stdin:
    print('heard ' + line, end='', flush=True)
print('silence', flush=True)
"""


@pytest.fixture(scope="module")
def shell(local_cluster: LocalCluster) -> Iterator[tuple[str, str]]:
    """Namespace and name of a pod that echoes on its own localhost."""
    with local_cluster.new_namespace("streams") as namespace:
        manifest = pod("shell", namespace, ["-c", ECHO])
        manifest["spec"]["containers"][0]["command"] = ["python3"]
        local_cluster.api.apply(manifest)
        wait_running(local_cluster, "shell", namespace)
        yield namespace, "shell"


def wait_running(cluster: Cluster, name: str, namespace: str) -> None:
    cluster.api.wait_for(
        "v1",
        "Pod",
        lambda pods: pods[0]["status"]["phase"] == "Running",
        namespace=namespace,
        name=name,
        timeout=30,
        describe=f"{name} runs",
    )


def run(
    cluster: Cluster, shell: tuple[str, str], *command: str, flags: str = "", input: str | None = None
) -> str:
    namespace, name = shell
    given = ["-i"] if input is not None else []
    return cluster.kubectl("exec", "-n", namespace, *given, *flags.split(), name, "--", *command, input=input)


def test_output_of_a_command(local_cluster: Cluster, shell: tuple[str, str]) -> None:
    assert run(local_cluster, shell, "hostname") == "shell\n"
    assert run(local_cluster, shell, "sh", "-c", "echo words >&2") == ""


def test_the_exit_code_and_what_was_said_on_the_way(
    local_cluster: LocalCluster, shell: tuple[str, str]
) -> None:
    namespace, name = shell
    done = subprocess.run(
        [
            local_cluster.kubectl_program,
            "exec",
            "-n",
            namespace,
            name,
            "--",
            "sh",
            "-c",
            "echo no >&2; exit 7",
        ],
        env={**os.environ, "KUBECONFIG": str(local_cluster.kubeconfig)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (7, "")
    assert done.stderr == "no\ncommand terminated with exit code 7\n"


def test_input_to_its_end(local_cluster: Cluster, shell: tuple[str, str]) -> None:
    text = "".join(f"{number}\n" for number in range(200_000))
    assert run(local_cluster, shell, "cat", input=text) == text
    assert run(local_cluster, shell, "head", "-n", "1", input=text) == "0\n"


def test_output_comes_whole_however_much_it_is(local_cluster: Cluster, shell: tuple[str, str]) -> None:
    for _ in range(3):
        lines = run(local_cluster, shell, "seq", "1", "500000").splitlines()
        assert (len(lines), lines[-1]) == (500_000, "500000")


def test_a_command_that_reads_nothing_ends_though_its_input_does_not(
    local_cluster: LocalCluster, shell: tuple[str, str]
) -> None:
    namespace, name = shell
    with subprocess.Popen(
        [local_cluster.kubectl_program, "exec", "-i", "-n", namespace, name, "--", "echo", "done"],
        env={**os.environ, "KUBECONFIG": str(local_cluster.kubeconfig)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b"done\n"


def test_a_terminal(local_cluster: LocalCluster, shell: tuple[str, str]) -> None:
    namespace, name = shell
    ours, theirs = os.openpty()
    script = "test -t 0 && stty size && read line && echo got $line"
    with subprocess.Popen(
        [local_cluster.kubectl_program, "exec", "-it", "-n", namespace, name, "--", "sh", "-c", script],
        env={**os.environ, "KUBECONFIG": str(local_cluster.kubeconfig)},
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        os.write(ours, b"typed\n")
        output = process.communicate(timeout=30)[0].decode()
    os.close(ours)
    os.close(theirs)
    assert re.search(r"\d+ \d+\r\n", output)
    assert "got typed\r\n" in output
    assert process.returncode == 0


def test_a_command_that_is_not_there_is_said(local_cluster: Cluster, shell: tuple[str, str]) -> None:
    with pytest.raises(CommandFailed, match=r"executable file not found in \$PATH"):
        run(local_cluster, shell, "no-such-command")


def test_a_command_ends_with_its_client(local_cluster: LocalCluster, shell: tuple[str, str]) -> None:
    namespace, name = shell
    command = ["exec", "-n", namespace, name, "--", "sh", "-c", "echo started; exec sleep 345678"]
    with subprocess.Popen(
        [local_cluster.kubectl_program, *command],
        env={**os.environ, "KUBECONFIG": str(local_cluster.kubeconfig)},
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "started\n"
        client.kill()
    listing = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; done 2>/dev/null; true"
    wait_until(
        lambda: "sleep 345678" not in run(local_cluster, shell, "sh", "-c", listing), 20, "it has ended"
    )


def test_files_are_copied_both_ways(local_cluster: Cluster, shell: tuple[str, str], tmp_path: Path) -> None:
    namespace, name = shell
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(3_000_000))
    local_cluster.kubectl("cp", "-n", namespace, str(there), f"{name}:/tmp/copied")
    local_cluster.kubectl("cp", "-n", namespace, f"{name}:/tmp/copied", str(back))
    assert back.read_bytes() == there.read_bytes()


def test_a_port_of_the_pods_own_localhost(local_cluster: LocalCluster, shell: tuple[str, str]) -> None:
    namespace, name = shell
    with forwarded(local_cluster, namespace, name, 8000) as port:
        for size in (10, 3_000_000):
            data = os.urandom(size)
            with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
                received = bytearray()
                for start in range(0, size, 1 << 14):
                    connection.sendall(data[start : start + (1 << 14)])
                    while len(received) < start - (1 << 20):
                        received += connection.recv(1 << 16)
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(1 << 16):
                    received += piece
            assert bytes(received) == data + b" end"


def test_a_forward_outlives_connections_that_break(
    local_cluster: LocalCluster, shell: tuple[str, str]
) -> None:
    namespace, name = shell
    with forwarded(local_cluster, namespace, name, 8000) as port:

        def connect() -> socket.socket:
            return socket.create_connection(("127.0.0.1", port), timeout=20)

        with connect() as broken_by_the_pod:
            broken_by_the_pod.sendall(b"break")
            while broken_by_the_pod.recv(100):
                pass
        for _ in range(30):
            with connect() as broken_by_us:
                broken_by_us.sendall(b"x" * 1000)
                broken_by_us.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with connect() as last:
            last.sendall(b"still")
            last.shutdown(socket.SHUT_WR)
            received = b""
            while piece := last.recv(100):
                received += piece
            assert received == b"still end"


def test_a_port_where_nobody_listens_is_said(local_cluster: LocalCluster, shell: tuple[str, str]) -> None:
    namespace, name = shell
    with forwarded(local_cluster, namespace, name, 9) as port, pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{port}", trust_env=False, timeout=20)


class forwarded:
    """The local port of a ``kubectl port-forward`` that runs for the time of the block."""

    def __init__(self, cluster: LocalCluster, namespace: str, name: str, port: int) -> None:
        self._process = subprocess.Popen(
            [cluster.kubectl_program, "port-forward", "-n", namespace, f"pod/{name}", f":{port}"],
            env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> int:
        assert self._process.stdout is not None
        found = re.search(r"127\.0\.0\.1:(\d+)", self._process.stdout.readline())
        assert found
        return int(found[1])

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=10)


def test_attaching_to_a_containers_own_streams(local_cluster: LocalCluster, namespace: str) -> None:
    manifest = pod("repeats", namespace, ["-c", REPEAT])
    manifest["spec"]["containers"][0] |= {"stdin": True, "stdinOnce": True}
    local_cluster.api.apply(manifest)
    wait_running(local_cluster, "repeats", namespace)
    wait_until(lambda: "ready" in local_cluster.logs("repeats", namespace), 30, "it runs")
    said = local_cluster.kubectl("attach", "-i", "-n", namespace, "repeats", input="one\ntwo\n")
    assert "heard one\nheard two\nsilence\n" in said
    assert "heard two\n" in local_cluster.logs("repeats", namespace)
