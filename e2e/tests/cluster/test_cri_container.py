"""What a container sees and may do: files, user, environment, network, logs, exec, memory."""

import re
import time

import grpc
import pytest
from localcluster.cri.client import NODE_ADDRESS, pb, running_node, until

IMAGES = {
    "test/tools:*": {"env": {"FROM_IMAGE": "1", "OVERRIDDEN": "image"}},
    "test/entry:*": {"entrypoint": ["echo", "entry"], "uid": 1234, "workingDir": "/usr"},
}
SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(sys.argv[1].encode() + b" saw " + self.client_address[0].encode())
http.server.ThreadingHTTPServer(("0.0.0.0", 80), Handler).serve_forever()
"""
FETCH = "import urllib.request; print(urllib.request.urlopen('http://{}/', timeout=2).read().decode())"


@pytest.fixture(scope="module")
def node():
    with running_node(IMAGES) as node:
        yield node


@pytest.fixture
def pod(node):
    pod = node.run_pod("web-0")
    yield pod
    pod.remove()


# Files


@pytest.mark.parametrize(
    "target",
    ["/data", "/mnt/models", "/var/run/secrets/kubernetes.io/x", "/opt/a/b", "/etc/app", "/tmp", "/var/lib"],
)
def test_folders_are_mounted_anywhere(node, pod, tmp_path, target):
    (tmp_path / "given").write_text("hello")
    mount = pb.Mount(container_path=target, host_path=str(tmp_path))
    container = pod.run("sh", "-c", f"cat {target}/given; echo made > {target}/new", mounts=[mount])
    assert container.output() == "hello\n"
    assert container.status.exit_code == 0
    assert (tmp_path / "new").read_text() == "made\n"


@pytest.mark.parametrize(
    "target", ["/etc/hosts", "/dev/termination-log", "/etc/new.conf", "/srv/deep/er/file"]
)
def test_files_are_mounted_anywhere(pod, tmp_path, target):
    (tmp_path / "file").write_text("before\n")
    mount = pb.Mount(container_path=target, host_path=str(tmp_path / "file"))
    assert pod.run("sh", "-c", f"cat {target}; echo after > {target}", mounts=[mount]).output() == "before\n"
    assert (tmp_path / "file").read_text() == "after\n"


def test_a_covered_folder_keeps_its_entries(pod, tmp_path):
    mount = pb.Mount(container_path="/etc/sheaf/config", host_path=str(tmp_path))
    container = pod.run("sh", "-c", "ls -d /etc/passwd /etc/sheaf/config; id root", mounts=[mount])
    assert container.output().startswith("/etc/passwd\n/etc/sheaf/config\n")
    assert container.status.exit_code == 0


def test_read_only_mounts(pod, tmp_path):
    mount = pb.Mount(container_path="/mnt/ro", host_path=str(tmp_path), readonly=True)
    container = pod.run("sh", "-c", "echo x > /mnt/ro/new", mounts=[mount])
    assert container.wait().exit_code != 0
    assert "Read-only file system" in container.log_path.read_text()
    assert not list(tmp_path.iterdir())


def test_mounts_inside_mounts(pod, tmp_path):
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    mounts = [
        pb.Mount(container_path="/mnt/a/b", host_path=str(tmp_path / "inner")),
        pb.Mount(container_path="/mnt/a", host_path=str(tmp_path / "outer")),
    ]
    assert pod.run("cat", "/mnt/a/name", "/mnt/a/b/name", mounts=mounts).output() == "outerinner\n"


def test_a_missing_source_is_an_error_that_names_it(pod):
    container = pod.create("true", mounts=[pb.Mount(container_path="/mnt/x", host_path="/no/such/source")])
    with pytest.raises(grpc.RpcError, match="/no/such/source"):
        container.start()


def test_the_host_cannot_be_changed(pod, tmp_path):
    script = (
        f"touch {tmp_path}/x /etc/x /usr/x; ls /tmp; touch /tmp/mine /var/tmp/mine /dev/shm/mine && echo ok"
    )
    assert pod.run("sh", "-c", script).output() == "ok\n"
    assert not list(tmp_path.iterdir())


def test_folders_of_its_own_are_private_to_each_container(pod):
    assert pod.run("sh", "-c", "echo 1 > /tmp/x; echo 1 > /run/x").wait().exit_code == 0
    assert pod.run("sh", "-c", "ls /tmp /run /mnt").output() == "/mnt:\n\n/run:\n\n/tmp:\n"


def test_read_only_root(pod, tmp_path):
    security = pb.LinuxContainerSecurityContext(readonly_rootfs=True)
    mounts = [pb.Mount(container_path="/opt/new/data", host_path=str(tmp_path))]
    script = "for f in /x /tmp/x /run/x /var/tmp/x /opt/new/x /etc/x; do echo x > $f && echo wrote $f; done; "
    script += "echo x > /opt/new/data/x && echo x > /dev/shm/x && echo fine"
    assert pod.run("sh", "-c", script, mounts=mounts, security=security).output() == "fine\n"


def test_image_paths_are_visible_in_folders_that_are_fresh(tmp_path):
    (tmp_path / "program").write_text("from the image")
    with running_node({"test/tools:*": {"paths": [str(tmp_path)]}}) as node:
        script = f"cat {tmp_path}/program; echo x > {tmp_path}/program"
        container = node.run_pod().run("sh", "-c", script)
        assert container.output() == "from the image\n"
        assert container.status.exit_code != 0
    assert (tmp_path / "program").read_text() == "from the image"


def test_a_volume_hides_nothing_of_the_image(tmp_path):
    """As of a checkout below /tmp, where the pods of models and operator have a volume."""
    folders = [tmp_path / name for name in ("covered/image", "covered/other", "volume")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{folder.name}\n")
    image, other, volume = map(str, folders)
    mounts = [pb.Mount(container_path=str(tmp_path / "covered"), host_path=volume)]
    with running_node({"test/tools:*": {"paths": [image]}}) as node:
        script = f"cat {image}/name {tmp_path}/covered/name; ls {tmp_path}/covered; echo x > {image}/name"
        container = node.run_pod().run("sh", "-c", script, mounts=mounts)
        assert container.output() == "image\nvolume\nimage\nname\n", f"{other} is no part of it"
        assert container.status.exit_code != 0
    assert (folders[0] / "name").read_text() == "image\n"


# User, environment, processes


def test_entrypoint_user_and_folder_of_the_image(pod):
    container = pod.run(image=pb.ImageSpec(image="test/entry:1"), args=["more"])
    assert container.output() == "entry more\n"
    container = pod.run("sh", "-c", "id -u; pwd", image=pb.ImageSpec(image="test/entry:1"))
    assert container.output() == "1234\n/usr\n"
    assert container.status.user.linux.uid == 1234


def test_user_of_the_pod(pod, tmp_path):
    security = pb.LinuxContainerSecurityContext(
        run_as_user=pb.Int64Value(value=1000), run_as_group=pb.Int64Value(value=2000)
    )
    mounts = [pb.Mount(container_path="/mnt/own", host_path=str(tmp_path))]
    script = "echo $(id -u):$(id -g); stat -c %u:%g /mnt/own"
    assert pod.run("sh", "-c", script, mounts=mounts, security=security).output() == "1000:2000\n1000:2000\n"


@pytest.mark.parametrize("uid", [0, 65532])
def test_no_power_over_the_node(pod, uid):
    security = pb.LinuxContainerSecurityContext(run_as_user=pb.Int64Value(value=uid))
    script = "mount -t tmpfs x /mnt && echo mounted; ip link set eth0 down && echo down; "
    script += "hostname x && echo named; echo done"
    assert pod.run("sh", "-c", script, security=security).output() == "done\n"


def test_environment_folder_and_host_name(pod):
    container = pod.run(
        "sh",
        "-c",
        "echo $FROM_IMAGE $OVERRIDDEN $HOME; pwd; hostname; cat /etc/hostname; cat /proc/sys/kernel/hostname",
        env={"OVERRIDDEN": "pod"},
        working_dir="/tmp/new/folder",
    )
    assert container.output() == "1 pod /tmp\n/tmp/new/folder\nweb-0\nweb-0\nweb-0\n"


def test_it_is_process_1_and_inherits_nothing(pod):
    assert pod.run("sh", "-c", "echo $$; echo /proc/[0-9]*").output() == "1\n/proc/1\n"
    masks = pod.run("sh", "-c", "grep -E '^Sig(Ign|Blk)' /proc/self/status | cut -f2").output().split()
    # Signals 32 and 33 are the C library's own: no program can set them, so they are as they were.
    assert [int(mask, 16) & ~(0b11 << 31) for mask in masks] == [0, 0]
    assert pod.run("ls", "/proc/self/fd").output() == "0\n1\n2\n3\n"  # the last is ls's own


# Network


def test_pods_bind_the_same_port_and_reach_each_other(node):
    pods = [node.run_pod(name) for name in ("a", "b")]
    for pod, name in zip(pods, ("a", "b"), strict=True):
        pod.run("python3", "-c", SERVER, name)
    addresses = [pod.status.network.ip for pod in pods]
    assert addresses[0] != addresses[1]
    for name, address in zip(("a", "b"), addresses, strict=True):
        answer = until(lambda address=address: try_enter(node, FETCH.format(address)))
        assert answer == f"{name} saw {NODE_ADDRESS}\n"
    client = pods[0].run("python3", "-c", FETCH.format(addresses[1]))
    assert client.output() == f"b saw {addresses[0]}\n"
    for pod in pods:
        pod.remove()


def test_one_pod_is_cut_off_and_comes_back(node):
    pods = [node.run_pod(name) for name in ("a", "b")]
    for pod, name in zip(pods, ("a", "b"), strict=True):
        pod.run("python3", "-c", SERVER, name)
    a, b = (pod.status.network.ip for pod in pods)
    for address in (a, b):
        until(lambda address=address: try_enter(node, FETCH.format(address)))
    node.enter(f"from localcluster.cri.network import cut; cut('{a}')")
    assert not try_enter(node, FETCH.format(a))
    assert try_enter(node, FETCH.format(b)) == f"b saw {NODE_ADDRESS}\n"
    node.enter(f"from localcluster.cri.network import restore; restore('{a}', '{NODE_ADDRESS}')")
    assert try_enter(node, FETCH.format(a)) == f"a saw {NODE_ADDRESS}\n"
    for pod in pods:
        pod.remove()


def test_the_network_of_the_node_on_request(node):
    pod = node.run_pod(network=pb.NODE)
    assert pod.status.network.ip == ""
    script = "from pyroute2 import IPRoute\nprint(*[a.get_attr('IFA_ADDRESS') for a in IPRoute().get_addr()])"
    own = pod.run("sh", "-c", "cat /proc/net/fib_trie").output()
    assert NODE_ADDRESS in own
    assert NODE_ADDRESS in node.enter(script)
    pod.remove()


def test_sysctls(node):
    pod = node.run_pod(sysctls={"net.core.somaxconn": "777"})
    assert pod.run("cat", "/proc/sys/net/core/somaxconn").output() == "777\n"
    pod.remove()


def test_what_a_pod_cannot_have_is_refused(node):
    with pytest.raises(grpc.RpcError, match="hostPort is not supported"):
        node.runtime.RunPodSandbox(
            pb.RunPodSandboxRequest(
                config=pb.PodSandboxConfig(
                    port_mappings=[pb.PortMapping(container_port=80, host_port=80)],
                    linux=pb.LinuxPodSandboxConfig(
                        security_context=pb.LinuxSandboxSecurityContext(
                            namespace_options=pb.NamespaceOption(pid=pb.CONTAINER)
                        )
                    ),
                )
            )
        )
    with pytest.raises(grpc.RpcError, match=r"cannot set the sysctl net\.nonsense"):
        node.run_pod(sysctls={"net.nonsense": "1"})


def try_enter(node, script: str) -> str:
    try:
        return node.enter(script)
    except AssertionError:
        return ""


# Logs


def test_both_streams_are_logged_with_their_times(pod):
    container = pod.run("sh", "-c", "echo out; echo err >&2; printf unfinished")
    container.wait()
    assert sorted(container.entries()) == [
        ("stderr", "F", "err"),
        ("stdout", "F", "out"),
        ("stdout", "F", "unfinished"),
    ]
    for line in container.log_path.read_text().splitlines():
        assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z std(out|err) F ", line)


def test_a_great_deal_of_output_is_complete(pod):
    script = "import sys; sys.stdout.write('x' * 100_000 + '\\n' + 'line\\n' * 200_000)"
    container = pod.run("python3", "-c", script)
    assert container.output() == "x" * 100_000 + "\n" + "line\n" * 200_000


def test_the_log_is_reopened_after_rotation(node, pod):
    container = pod.run("sh", "-c", "echo before; until [ -e /tmp/go ]; do sleep 0.02; done; echo after")
    container.wait_for_output("before")
    rotated = container.log_path.with_suffix(".1")
    container.log_path.rename(rotated)
    node.runtime.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=container.id))
    container.exec("touch", "/tmp/go")
    container.wait()
    assert [text for _, _, text in container.entries()] == ["after"]
    assert "before" in rotated.read_text()


# Commands in a running container


def test_exec_runs_inside(pod, tmp_path):
    mounts = [pb.Mount(container_path="/mnt/own", host_path=str(tmp_path))]
    container = pod.run("sleep", "100", env={"A": "1"}, mounts=mounts, working_dir="/usr")
    script = (
        "echo $A $(id -u) $(pwd) $(hostname); touch /mnt/own/here; cat /proc/1/cmdline; echo err >&2; exit 9"
    )
    answer = container.exec("sh", "-c", script)
    assert answer.stdout == b"1 65532 /usr web-0\nsleep\x00100\x00"
    assert (answer.stderr, answer.exit_code) == (b"err\n", 9)
    assert (tmp_path / "here").exists()


def test_exec_is_killed_for_its_time(pod):
    container = pod.run("sleep", "100")
    begin = time.monotonic()
    with pytest.raises(grpc.RpcError, match="took longer than 1 s") as error:
        container.exec("sh", "-c", "sleep 432 & sleep 432; true", timeout=1)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begin < 5
    until(lambda: b"432" not in container.exec("sh", "-c", "cat /proc/[0-9]*/cmdline | grep -a 43[2]").stdout)


def test_exec_does_not_wait_for_what_it_leaves_behind(pod):
    container = pod.run("sleep", "100")
    begin = time.monotonic()
    assert container.exec("sh", "-c", "sleep 50 & echo started").stdout == b"started\n"
    assert time.monotonic() - begin < 5


def test_exec_that_leaves_a_writer_behind_does_not_hold_the_runtime_up(pod):
    container = pod.run("sleep", "100")
    assert len(container.exec("sh", "-c", "yes & sleep 0.2").stdout) == 1 << 20  # the rest is dropped
    begin = time.monotonic()
    assert container.exec("echo", "answered").stdout == b"answered\n"
    assert time.monotonic() - begin < 5


def test_exec_of_nothing_and_in_an_ended_container(pod):
    container = pod.run("sleep", "100")
    with pytest.raises(grpc.RpcError, match="executable file not found"):
        container.exec("no-such-program")
    container.stop(0)
    with pytest.raises(grpc.RpcError, match="is exited"):
        container.exec("true")


# Memory and usage

HOG = "import time; kept = bytearray({} << 20); print('up', flush=True); time.sleep(100)"


def test_over_its_memory_limit_it_is_killed(pod):
    container = pod.run("python3", "-c", HOG.format(200), memory=100 << 20)
    status = container.wait()
    assert (status.exit_code, status.reason) == (137, "OOMKilled")


def test_the_whole_tree_counts(pod):
    script = f'python3 -c "{HOG.format(60)}" & python3 -c "{HOG.format(60)}" & wait'
    container = pod.run("sh", "-c", script, memory=100 << 20)
    assert container.wait().reason == "OOMKilled"


def test_below_its_memory_limit_it_lives_until_the_limit_is_lowered(node, pod):
    container = pod.run("python3", "-c", HOG.format(50), memory=150 << 20)
    container.wait_for_output("up")
    assert container.status.state == pb.CONTAINER_RUNNING
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=30 << 20)
    node.runtime.UpdateContainerResources(
        pb.UpdateContainerResourcesRequest(container_id=container.id, linux=resources)
    )
    assert container.wait().reason == "OOMKilled"
    assert container.status.resources.linux.memory_limit_in_bytes == 30 << 20


def test_usage_is_measured(node, pod):
    script = "kept = bytearray(50 << 20)\nwhile True: pass"
    container = pod.run("sh", "-c", f'python3 -c "{script}" & wait')

    def stats():
        request = pb.ContainerStatsRequest(container_id=container.id)
        return node.runtime.ContainerStats(request).stats

    until(lambda: stats().cpu.usage_core_nano_seconds.value > 100_000_000)
    assert 50 << 20 < stats().memory.rss_bytes.value <= stats().memory.working_set_bytes.value < 200 << 20
    listed = node.runtime.ListContainerStats(pb.ListContainerStatsRequest()).stats
    assert container.id in [each.attributes.id for each in listed]
    wanted = pb.PodSandboxStatsFilter(id=pod.id)
    (pod_stats,) = node.runtime.ListPodSandboxStats(pb.ListPodSandboxStatsRequest(filter=wanted)).stats
    assert pod_stats.linux.memory.rss_bytes.value > 50 << 20
    assert pod_stats.linux.process.process_count.value == 2
    assert [each.attributes.id for each in pod_stats.linux.containers] == [container.id]
