"""A CRI runtime in a rootless node of its own, and a small client for it, as the tests need them.

The test stays outside and speaks gRPC over the unix socket; `Node.enter` runs a script inside.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from localcluster.setup import cri_api

pb, rpc = cri_api.load()

E2E = Path(__file__).parents[2]
NODE_ADDRESS = "172.30.0.1"
IMAGE = "test/tools:1"
IMAGES: Mapping[str, Any] = {"test/tools:*": {"entrypoint": []}}

# Inside the new namespaces: the node's address on `lo`, then the runtime itself in this process.
_NODE = f"""
import runpy, sys
from pyroute2 import IPRoute
with IPRoute() as node:
    node.link("set", index=1, state="up")
    node.addr("add", index=1, address="{NODE_ADDRESS}", prefixlen=32)
runpy.run_module("localcluster.cri", run_name="__main__", alter_sys=True)
"""


@contextmanager
def running_node(
    images: Mapping[str, Any] = IMAGES, uid: int | None = None, env: Mapping[str, str] | None = None
) -> Iterator["Node"]:
    """A node for the time of the block. `uid` is the outer user to run it as (only root can choose)."""
    folder = Path(tempfile.mkdtemp(prefix="cri-"))  # a short path: it holds a unix socket
    if uid is not None:
        os.chown(folder, uid, uid)
    node = Node(folder, images, uid, env or {})
    try:
        node.start()
        yield node
    finally:
        node.terminate()
        shutil.rmtree(folder)


class Node:
    """The runtime under test, which `start` starts and a client may then speak to."""

    process: subprocess.Popen[bytes]

    def __init__(
        self, folder: Path, images: Mapping[str, Any], uid: int | None, env: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.socket = folder / "cri.sock"
        self.logs = folder / "logs"
        self._uid = uid
        self.env = {**os.environ, "PYTHONPATH": str(E2E), **env}
        images_file = folder / "images.json"
        images_file.write_text(json.dumps(images))
        options = [f"--socket={self.socket}", f"--state-dir={folder / 'state'}", f"--images={images_file}"]
        inside = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
        self.command = [*inside, sys.executable, "-c", _NODE, *options]
        self._serial = 0

    def start(self) -> None:
        user: Any = {} if self._uid is None else {"user": self._uid, "group": self._uid, "extra_groups": ()}
        with open(self.folder / "cri.log", "ab") as log:
            self.process = subprocess.Popen(self.command, env=self.env, stderr=log, **user)
        self.channel = grpc.insecure_channel(f"unix:{self.socket}")
        self.runtime = rpc.RuntimeServiceStub(self.channel)
        self.images = rpc.ImageServiceStub(self.channel)
        try:
            self.runtime.Version(pb.VersionRequest(), wait_for_ready=True, timeout=20)
        except grpc.RpcError as error:
            raise AssertionError(f"no answer: {(self.folder / 'cri.log').read_text()}") from error

    def kill(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        self.channel.close()
        self.process.terminate()
        return self.process.wait(30)

    def enter(self, script: str) -> str:
        """Run a Python script in the node's user and network namespaces; return what it prints."""
        inside = ["nsenter", "--target", str(self.process.pid), "--user", "--net", "--preserve-credentials"]
        done = subprocess.run(
            [*inside, sys.executable, "-c", script],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run_pod(self, name: str = "pod", **linux: Any) -> "Pod":
        self._serial += 1
        options = pb.NamespaceOption(pid=pb.CONTAINER, network=linux.pop("network", pb.POD))
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, uid=f"uid-{self._serial}", namespace="ns"),
            hostname=name,
            log_directory=str(self.logs / f"{name}-{self._serial}"),
            labels={"pod": name},
            linux=pb.LinuxPodSandboxConfig(
                security_context=pb.LinuxSandboxSecurityContext(namespace_options=options), **linux
            ),
        )
        answer = self.runtime.RunPodSandbox(pb.RunPodSandboxRequest(config=config))
        return Pod(self, answer.pod_sandbox_id, config)


class Pod:
    def __init__(self, node: Node, pod_id: str, config: Any) -> None:
        self.node, self.id, self.config = node, pod_id, config
        self._containers = 0

    @property
    def status(self) -> Any:
        return self.node.runtime.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=self.id)).status

    def create(
        self,
        *command: str,
        env: Mapping[str, str] | None = None,
        mounts: Sequence[Any] = (),
        memory: int = 0,
        security: Any = None,
        **config: Any,
    ) -> "Container":
        config.setdefault("metadata", pb.ContainerMetadata(name="main"))
        config.setdefault("image", pb.ImageSpec(image=IMAGE))
        self._containers += 1
        config.setdefault("log_path", f"main/{self._containers}.log")
        request = pb.CreateContainerRequest(
            pod_sandbox_id=self.id,
            config=pb.ContainerConfig(
                command=command,
                envs=[pb.KeyValue(key=key, value=value.encode()) for key, value in (env or {}).items()],
                mounts=mounts,
                linux=pb.LinuxContainerConfig(
                    resources=pb.LinuxContainerResources(memory_limit_in_bytes=memory),
                    security_context=security,
                ),
                **config,
            ),
            sandbox_config=self.config,
        )
        answer = self.node.runtime.CreateContainer(request)
        return Container(self, answer.container_id, Path(self.config.log_directory, config["log_path"]))

    def run(self, *command: str, **config: Any) -> "Container":
        container = self.create(*command, **config)
        container.start()
        return container

    def stop(self) -> None:
        self.node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=self.id))

    def remove(self) -> None:
        self.node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=self.id))


class Container:
    def __init__(self, pod: Pod, container_id: str, log_path: Path) -> None:
        self.pod, self.id, self.log_path = pod, container_id, log_path
        self.runtime = pod.node.runtime

    @property
    def status(self) -> Any:
        return self.runtime.ContainerStatus(pb.ContainerStatusRequest(container_id=self.id)).status

    @property
    def pid(self) -> int:
        """As seen from outside the pod."""
        request = pb.ContainerStatusRequest(container_id=self.id, verbose=True)
        return int(json.loads(self.runtime.ContainerStatus(request).info["info"])["pid"])

    def start(self) -> None:
        self.runtime.StartContainer(pb.StartContainerRequest(container_id=self.id))

    def stop(self, grace_s: int) -> None:
        self.runtime.StopContainer(pb.StopContainerRequest(container_id=self.id, timeout=grace_s))

    def remove(self) -> None:
        self.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=self.id))

    def exec(self, *command: str, timeout: int = 10) -> Any:
        return self.runtime.ExecSync(pb.ExecSyncRequest(container_id=self.id, cmd=command, timeout=timeout))

    def wait(self) -> Any:
        """The status once the container has ended."""
        return until(lambda: self.status if self.status.state == pb.CONTAINER_EXITED else None)

    def entries(self) -> list[tuple[str, str, str]]:
        """Stream, tag and text of each log entry."""
        lines = self.log_path.read_text().splitlines()
        return [tuple(line.split(" ", 3)[1:]) for line in lines]  # type: ignore[misc]

    def output(self) -> str:
        """What it wrote to stdout, once it has ended; its last line ends in a newline in any case."""
        self.wait()
        return "".join(
            text + "\n" * (tag == "F") for stream, tag, text in self.entries() if stream == "stdout"
        )

    def wait_for_output(self, text: str) -> None:
        until(lambda: self.log_path.exists() and text in self.log_path.read_text())


def until(condition: Any, timeout_s: float = 15.0) -> Any:
    """The first true value of `condition()`, asked again and again."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still waiting after {timeout_s} s: {condition}"
        time.sleep(0.01)
    return value
