"""Pods and containers from start to end, through the real server."""

import concurrent.futures
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import pytest
from localcluster.cri.client import pb, running_node, until
from localcluster.setup import cri_api

GRACEFUL = r"""
import os, signal, time
def leave(*_):
    time.sleep(0.2)
    os.write(1, b"left\n")
    os._exit(7)
signal.signal(signal.SIGTERM, leave)
os.write(1, b"up\n")
while True:
    signal.pause()
"""
STUBBORN = "trap 'echo no' TERM; echo up; while :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def node():
    with running_node() as node:
        yield node


@pytest.fixture
def pod(node):
    pod = node.run_pod()
    yield pod
    pod.remove()


def code(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()


def test_states_times_and_metadata(node, pod):
    container = pod.create("sh", "-c", "exit 0", labels={"a": "b"}, annotations={"c": "d"})
    status = container.status
    assert (status.state, status.started_at, status.finished_at) == (pb.CONTAINER_CREATED, 0, 0)
    container.start()
    status = container.wait()
    assert status.created_at <= status.started_at <= status.finished_at <= time.time_ns()
    assert (status.exit_code, status.reason) == (0, "Completed")
    assert (dict(status.labels), dict(status.annotations)) == ({"a": "b"}, {"c": "d"})
    assert status.log_path == str(container.log_path)
    assert status.image.image == "test/tools:1"


@pytest.mark.parametrize(
    ("script", "exit_code"), [("exit 3", 3), ("exit 255", 255), ("sh -c 'kill -SEGV $$'; exit $?", 139)]
)
def test_exit_codes_are_the_truth(pod, script, exit_code):
    status = pod.run("sh", "-c", script).wait()
    assert (status.exit_code, status.reason) == (exit_code, "Error")


def test_a_command_killed_from_outside(pod):
    container = pod.run("sleep", "100")
    os.kill(container.pid, signal.SIGKILL)
    status = container.wait()
    assert (status.exit_code, status.reason) == (128 + signal.SIGKILL, "Error")


def test_stop_lets_the_command_end_and_returns_when_it_has(pod):
    container = pod.run("python3", "-c", GRACEFUL)
    container.wait_for_output("up")
    begin = time.monotonic()
    container.stop(30)
    assert time.monotonic() - begin < 5
    assert container.status.exit_code == 7
    assert container.output() == "up\nleft\n"


def test_stop_kills_everything_after_the_grace_period(node, pod):
    container = pod.run("sh", "-c", "sleep 987654 & " + STUBBORN)
    container.wait_for_output("up")
    begin = time.monotonic()
    container.stop(1)
    assert 0.9 < time.monotonic() - begin < 5
    assert container.status.exit_code == 137
    assert "no" in container.output()
    assert not processes("sleep 987654")


def test_stop_without_grace_does_not_ask(pod):
    container = pod.run("sh", "-c", STUBBORN)
    container.wait_for_output("up")
    container.stop(0)
    assert container.output() == "up\n"
    assert container.status.exit_code == 137


def test_the_pods_stop_signal_is_used(pod):
    script = "trap 'exit 5' USR1; echo up; while :; do sleep 0.05; done"
    container = pod.run("sh", "-c", script, stop_signal=pb.SIGUSR1)
    container.wait_for_output("up")
    container.stop(10)
    assert container.status.exit_code == 5
    assert container.status.stop_signal == pb.SIGUSR1


def test_a_second_stop_may_be_more_impatient(pod):
    container = pod.run("sh", "-c", STUBBORN)
    container.wait_for_output("up")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        patient = pool.submit(container.stop, 60)
        container.wait_for_output("no")
        begin = time.monotonic()
        container.stop(0)
        patient.result()
    assert time.monotonic() - begin < 5


def test_children_of_the_command_end_with_it(pod):
    container = pod.run("sh", "-c", "setsid sleep 876543 & sleep 0.2; exit 4")
    assert container.wait().exit_code == 4
    assert not processes("sleep 876543")


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("no-such-program", 'exec: "no-such-program": executable file not found in $PATH'),
        ("/no/such/program", 'exec: "/no/such/program": No such file or directory'),
        ("/etc/passwd", 'exec: "/etc/passwd": Permission denied'),
    ],
)
def test_a_command_that_cannot_start(pod, command, why):
    container = pod.create(command)
    with pytest.raises(grpc.RpcError, match="failed to start container") as error:
        container.start()
    assert why in error.value.details()
    status = container.status
    assert (status.state, status.exit_code, status.reason) == (pb.CONTAINER_EXITED, 128, "StartError")
    assert status.message == why


def test_starting_twice_is_refused(pod):
    container = pod.run("sleep", "100")
    with pytest.raises(grpc.RpcError) as error:
        container.start()
    assert code(error) is grpc.StatusCode.FAILED_PRECONDITION


def test_unknown_containers_and_pods(node):
    with pytest.raises(grpc.RpcError) as error:
        node.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id="nope"))
    assert code(error) is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as error:
        node.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id="nope"))
    assert code(error) is grpc.StatusCode.NOT_FOUND
    # ending what is not there succeeds
    node.runtime.StopContainer(pb.StopContainerRequest(container_id="nope"))
    node.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id="nope"))
    node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id="nope"))
    node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id="nope"))


def test_stopping_a_pod_ends_its_containers_and_can_be_repeated(node):
    pod = node.run_pod()
    running, created = pod.run("sh", "-c", STUBBORN), pod.create("true")
    pod.stop()
    pod.stop()
    assert pod.status.state == pb.SANDBOX_NOTREADY
    assert pod.status.network.ip == ""
    assert running.status.exit_code == 137
    assert created.status.state == pb.CONTAINER_EXITED
    with pytest.raises(grpc.RpcError) as error:
        pod.create("true")
    assert code(error) is grpc.StatusCode.FAILED_PRECONDITION
    pod.remove()
    pod.remove()
    with pytest.raises(grpc.RpcError) as error:
        _ = running.status
    assert code(error) is grpc.StatusCode.NOT_FOUND


def test_removing_ends_what_still_runs(node):
    pod = node.run_pod()
    container = pod.run("sleep", "765432")
    container.remove()
    assert not processes("sleep 765432")
    pod.run("sleep", "765432")
    pod.remove()
    assert not processes("sleep 765432")


def test_lists_are_filtered(node, pod):
    other = node.run_pod("other")
    running, exited = pod.run("sleep", "100", labels={"x": "1"}), pod.run("true")
    exited.wait()

    def containers(**wanted):
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(**wanted))
        return {container.id for container in node.runtime.ListContainers(request).containers}

    assert containers(pod_sandbox_id=pod.id) == {running.id, exited.id}
    assert containers(id=exited.id) == {exited.id}
    assert containers(label_selector={"x": "1"}) == {running.id}
    state = pb.ContainerStateValue(state=pb.CONTAINER_RUNNING)
    assert containers(pod_sandbox_id=pod.id, state=state) == {running.id}

    def pods(**wanted):
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**wanted))
        return {item.id for item in node.runtime.ListPodSandbox(request).items}

    assert pods() >= {pod.id, other.id}
    assert pods(label_selector={"pod": "other"}) == {other.id}
    other.stop()
    assert pods(state=pb.PodSandboxStateValue(state=pb.SANDBOX_READY)) == {pod.id}
    other.remove()


def test_many_at_once(node):
    def life(number: int) -> int:
        pod = node.run_pod(f"many-{number}")
        container = pod.run("sh", "-c", f"exit {number}")
        exit_code = container.wait().exit_code
        pod.remove()
        return int(exit_code)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(life, range(16))) == list(range(16))


def test_descriptors_are_given_back(node):
    def life() -> None:
        pod = node.run_pod()
        pod.run("sleep", "100").exec("true")
        with pytest.raises(grpc.RpcError):
            pod.run("no-such-program")
        pod.remove()

    def held() -> int:
        return len(os.listdir(f"/proc/{node.process.pid}/fd"))

    life()
    before = held()
    for _ in range(5):
        life()
    assert held() == before


def test_images(node):
    found = node.images.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image="test/tools:9")))
    assert (found.image.id, found.image.uid.value) == ("test/tools:9", 65532)
    pulled = node.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="test/tools:9")))
    assert pulled.image_ref == "test/tools:9"
    unknown = pb.ImageSpec(image="nginx:latest")
    assert not node.images.ImageStatus(pb.ImageStatusRequest(image=unknown)).HasField("image")
    with pytest.raises(
        grpc.RpcError, match=r"'nginx:latest' not found: this node only has test/tools:\*"
    ) as error:
        node.images.PullImage(pb.PullImageRequest(image=unknown))
    assert code(error) is grpc.StatusCode.NOT_FOUND
    assert node.images.ImageFsInfo(pb.ImageFsInfoRequest()).image_filesystems[0].used_bytes.value > 0


def test_what_is_not_supported_says_so(node):
    with pytest.raises(grpc.RpcError) as error:
        next(iter(node.runtime.GetContainerEvents(pb.GetEventsRequest())))
    assert code(error) is grpc.StatusCode.UNIMPLEMENTED


def test_streams_are_offered_for_what_runs_only(node, pod):
    container = pod.create("sleep", "100")
    ask = pb.ExecRequest(container_id=container.id, cmd=["true"], stdout=True)
    with pytest.raises(grpc.RpcError) as error:
        node.runtime.Exec(ask)
    assert code(error) is grpc.StatusCode.FAILED_PRECONDITION
    container.start()
    first, second = (node.runtime.Exec(ask).url for _ in range(2))
    assert first.startswith("http://172.30.0.1:")
    assert first != second  # each is good for one use
    with pytest.raises(grpc.RpcError) as error:
        node.runtime.PortForward(pb.PortForwardRequest(pod_sandbox_id="none", port=[80]))
    assert code(error) is grpc.StatusCode.NOT_FOUND


def test_a_killed_runtime_leaves_nothing_and_its_successor_begins_clean():
    with running_node() as node:
        pods = [node.run_pod() for _ in range(2)]
        for pod in pods:
            pod.run("sh", "-c", "sleep 654321 & setsid sleep 654321 & exec sleep 654321")
        until(lambda: len(processes("sleep 654321")) == 6)
        # A process of ours keeps the node's network, as the kubelet would.
        inside = ["nsenter", "--target", str(node.process.pid), "--user", "--net", "--preserve-credentials"]
        witness = subprocess.Popen([*inside, "sleep", "1000"])
        try:
            network = f"/proc/{node.process.pid}/ns/net"
            until(lambda: os.readlink(f"/proc/{witness.pid}/ns/net") == os.readlink(network))
            node.kill()
            until(lambda: not processes("sleep 654321"))
            node.process = witness  # so that `enter` finds the network
            until(lambda: node.enter(LINKS).split() == ["lo"])
        finally:
            witness.kill()
            witness.wait()
        node.start()
        assert not node.runtime.ListPodSandbox(pb.ListPodSandboxRequest()).items
        assert node.run_pod().run("echo", "again").output() == "again\n"


def test_a_runtime_told_to_end_leaves_nothing():
    with running_node() as node:
        container = node.run_pod().run("sh", "-c", "sleep 543210 & exec sleep 543210")
        until(lambda: len(processes("sleep 543210")) == 2)
        assert node.terminate() == 0
        assert not processes("sleep 543210")
        assert container.log_path.exists()
        node.start()


def test_a_second_runtime_on_the_same_folder_is_refused(node):
    second = subprocess.run(node.command, env=node.env, capture_output=True, text=True, timeout=20)
    assert second.returncode == 2
    assert "another runtime is using" in second.stderr
    node.runtime.Version(pb.VersionRequest())


def reachable_for_all(program: str) -> bool:
    """Whether another user can run it: an interpreter in root's home cannot be."""
    return all(folder.stat().st_mode & 0o001 for folder in Path(program).resolve().parents)


@pytest.mark.skipif(os.geteuid() != 0, reason="already running as an unprivileged user")
@pytest.mark.skipif(not reachable_for_all(sys.executable), reason="this Python is only for its owner")
def test_as_an_unprivileged_user(tmp_path_factory):
    nobody = 65534
    cache = Path(tmp_path_factory.mktemp("cache"))
    shutil.copytree(cri_api.ensure(), cache / cri_api.ensure().name)
    for folder in itertools.takewhile(lambda f: f != Path(tempfile.gettempdir()), (cache, *cache.parents)):
        folder.chmod(0o755)
    with running_node(uid=nobody, env={"SHEAF_CACHE": str(cache), "HOME": "/nonexistent"}) as node:
        pod = node.run_pod()
        assert pod.run("id", "-u").output() == "65532\n"
        container = pod.run("sh", "-c", STUBBORN)
        container.wait_for_output("up")
        assert container.exec("sh", "-c", "exit 3").exit_code == 3
        container.stop(0)
        assert container.status.exit_code == 137


LINKS = """
from pyroute2 import IPRoute
with IPRoute() as route:
    print(*[link.get_attr("IFLA_IFNAME") for link in route.get_links()])
"""


def processes(command_line: str) -> list[int]:
    """Processes of this machine with exactly this command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip() == command_line.encode():
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found
