"""Pods and their containers: what exists, in which state, and the rules for changing it.

Everything runs on one event loop, so state is read and written without locks; only a container's start,
which awaits, is guarded. Requests may come at any time and be repeated: stopping and removing succeed for
what is already stopped or gone, as CRI demands.
"""

import asyncio
import functools
import logging
import os
import shutil
import signal
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from localcluster.cri import network
from localcluster.cri.container_init import FAILED_TO_START, Spec
from localcluster.cri.images import Image, ImageTable
from localcluster.cri.logs import ContainerLog
from localcluster.cri.process import Process, StartError, launch
from localcluster.cri.spec import container_spec, exec_spec, write_pod_files
from localcluster.cri.usage import measure
from localcluster.machine.syscalls import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)

log = logging.getLogger("cri")

MEMORY_CHECK_S = 0.5
MAX_EXEC_OUTPUT = 1024 * 1024  # bytes per stream; the answer must fit a gRPC message
_KILLED = 128 + signal.SIGKILL
_OTHER_NAMESPACES = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC


Output = Callable[[bytes], None]


class NotFound(Exception):
    """No pod, container or image of this name."""


class Refused(Exception):
    """The request cannot be honoured in the present state; the message says why."""


class State(Enum):
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(eq=False)
class Pod:
    id: str
    config: Any  # the kubelet's PodSandboxConfig
    handler: str
    created_at: int  # nanoseconds since the epoch, as all times here
    namespaces: network.PodNamespaces
    files: Path
    ready: bool = True
    containers: dict[str, "Container"] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Empty for a pod on the node's network, and once the pod has given its address back."""
        return str(self.namespaces.address or "") if self.ready else ""


@dataclass(eq=False)
class Container:
    id: str
    pod: Pod
    config: Any  # the kubelet's ContainerConfig
    image: Image
    log: ContainerLog
    spec: Spec
    created_at: int
    memory_limit: int  # bytes, 0 for none
    state: State = State.CREATED
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    process: Process | None = None
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    watchers: list[tuple[Output, Output]] = field(default_factory=list)  # of its output; see `attach`

    def write(self, stream: int, text: bytes) -> None:
        self.log.write(("stdout", "stderr")[stream], text)
        for watcher in self.watchers:
            watcher[stream](text)

    def finish(self, exit_code: int, reason: str, message: str = "") -> None:
        self.log.close()
        self.state, self.finished_at = State.EXITED, time.time_ns()
        self.exit_code, self.reason, self.message = exit_code, reason, message
        self.ended.set()


class Runtime:
    def __init__(
        self, state_dir: Path, images: ImageTable, node_address: str, pod_network: IPv4Network
    ) -> None:
        self.images = images
        self.pods: dict[str, Pod] = {}
        self.containers: dict[str, Container] = {}
        self._pod_dir = state_dir / "pods"
        self._scratch = state_dir / "rootfs"  # an empty folder on which each container's root is built
        self._node_address = node_address
        self._addresses = network.AddressPool(pod_network)
        self._tasks: set[asyncio.Task[None]] = set()
        self._memory_watch: asyncio.Task[None] | None = None
        shutil.rmtree(self._pod_dir, ignore_errors=True)  # a predecessor's; its pods died with it
        self._scratch.mkdir(parents=True, exist_ok=True)

    # Pods

    async def run_pod(self, config: Any, handler: str, *, host_network: bool) -> Pod:
        pod_id = uuid.uuid4().hex
        files = self._pod_dir / pod_id
        address = None if host_network else self._addresses.take()
        try:
            write_pod_files(config, files)
            namespaces = await asyncio.to_thread(
                network.create, address, self._node_address, config.hostname, dict(config.linux.sysctls)
            )
        except BaseException:
            shutil.rmtree(files, ignore_errors=True)
            if address:
                self._addresses.release(address)
            raise
        pod = Pod(pod_id, config, handler, time.time_ns(), namespaces, files)
        self.pods[pod_id] = pod
        return pod

    async def stop_pod(self, pod_id: str) -> None:
        """End the pod's containers at once and give its address back."""
        pod = self.pods.get(pod_id)
        if pod is None:
            return
        pod.ready = False
        await asyncio.gather(*(self.stop_container(each, 0) for each in list(pod.containers)))
        if pod.namespaces.fds:
            fds, pod.namespaces.fds = pod.namespaces.fds, []
            taken = network.PodNamespaces(pod.namespaces.address, fds)
            await asyncio.to_thread(taken.close)
            if taken.address:
                self._addresses.release(taken.address)

    async def remove_pod(self, pod_id: str) -> None:
        await self.stop_pod(pod_id)
        pod = self.pods.pop(pod_id, None)
        if pod is not None:
            for container_id in list(pod.containers):
                await self.remove_container(container_id)
            shutil.rmtree(pod.files, ignore_errors=True)

    def pod(self, pod_id: str) -> Pod:
        try:
            return self.pods[pod_id]
        except KeyError:
            raise NotFound(f"no pod sandbox {pod_id}") from None

    # Containers

    def create_container(self, pod_id: str, config: Any, log_path: Path) -> Container:
        pod = self.pod(pod_id)
        if not pod.ready:
            raise Refused(f"pod sandbox {pod_id} is not ready")
        image = self.image(config.image.image)
        spec = container_spec(config, image, pod.files, str(self._scratch), pod.namespaces.fds)
        container = Container(
            id=uuid.uuid4().hex,
            pod=pod,
            config=config,
            image=image,
            log=ContainerLog(log_path),
            spec=spec,
            created_at=time.time_ns(),
            memory_limit=config.linux.resources.memory_limit_in_bytes,
        )
        self.containers[container.id] = pod.containers[container.id] = container
        return container

    async def start_container(self, container_id: str) -> None:
        container = self.container(container_id)
        async with container.starting:
            if container.state is not State.CREATED or not container.pod.ready:
                raise Refused(f"container {container_id} is {container.state.value} and cannot be started")
            try:
                container.process = await launch(
                    container.spec,
                    functools.partial(container.write, 0),
                    functools.partial(container.write, 1),
                    with_input=container.config.stdin,
                )
            except (StartError, OSError) as error:
                container.started_at = time.time_ns()
                container.finish(FAILED_TO_START, "StartError", str(error))
                raise Refused(f"failed to start container {container_id}: {error}") from error
            container.state, container.started_at = State.RUNNING, time.time_ns()
            self._spawn(self._follow(container, container.process))
            self._watch_memory()

    async def stop_container(self, container_id: str, grace_s: float) -> None:
        """Ask the container's first process to end, and end all of them after the grace period."""
        container = self.containers.get(container_id)
        if container is None:
            return
        async with container.starting:
            if container.state is State.CREATED:
                container.finish(_KILLED, "Error", "stopped before it was started")
        process = container.process
        if container.state is not State.RUNNING or process is None:
            return
        if grace_s > 0:
            process.signal(_stop_signal(container.config))
            try:
                await asyncio.wait_for(container.ended.wait(), grace_s)
            except TimeoutError:
                log.info("container %s did not end within %s s", container_id, grace_s)
        process.signal(signal.SIGKILL)  # the first process takes its process namespace with it
        await container.ended.wait()

    async def remove_container(self, container_id: str) -> None:
        await self.stop_container(container_id, 0)
        container = self.containers.pop(container_id, None)
        if container is not None:
            container.pod.containers.pop(container_id, None)

    def container(self, container_id: str) -> Container:
        try:
            return self.containers[container_id]
        except KeyError:
            raise NotFound(f"no container {container_id}") from None

    def image(self, name: str) -> Image:
        image = self.images.find(name)
        if image is None:
            known = ", ".join(self.images.patterns)
            raise NotFound(f"image {name!r} not found: this node only has {known}")
        return image

    async def exec_sync(
        self, container_id: str, argv: list[str], timeout_s: float
    ) -> tuple[int, bytes, bytes]:
        """Run a command in a container: exit code, stdout, stderr. TimeoutError if it had to be killed."""
        stdout, stderr = bytearray(), bytearray()
        async with self.exec(container_id, argv, _collect(stdout), _collect(stderr)) as process:
            exit_code = await asyncio.wait_for(process.wait(), timeout_s or None)
        return exit_code, bytes(stdout), bytes(stderr)

    @asynccontextmanager
    async def exec(
        self,
        container_id: str,
        argv: list[str],
        on_stdout: Output,
        on_stderr: Output,
        *,
        with_input: bool = False,
        terminal: bool = False,
    ) -> AsyncIterator[Process]:
        """A further command in a running container; it is ended with the block."""
        container, main = self.running(container_id)
        pidfd = main.duplicate_pidfd()
        try:
            namespaces = [(pidfd, _OTHER_NAMESPACES), (pidfd, CLONE_NEWUSER)]
            spec = exec_spec(container.config, container.image, argv, container.spec, namespaces, terminal)
            process = await launch(spec, on_stdout, on_stderr, with_input=with_input)
        except StartError as error:
            raise Refused(f"cannot run {argv} in container {container_id}: {error}") from error
        finally:
            os.close(pidfd)
        try:
            yield process
        finally:
            process.kill_group()

    @asynccontextmanager
    async def attach(self, container_id: str, on_stdout: Output, on_stderr: Output) -> AsyncIterator[Process]:
        """The container's own command; what it writes inside the block is passed on."""
        container, main = self.running(container_id)
        watcher = (on_stdout, on_stderr)
        container.watchers.append(watcher)
        try:
            yield main
        finally:
            container.watchers.remove(watcher)

    def running(self, container_id: str) -> tuple[Container, Process]:
        container = self.container(container_id)
        if container.state is not State.RUNNING or container.process is None:
            raise Refused(f"container {container_id} is {container.state.value}")
        return container, container.process

    async def connect(self, pod_id: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to a port of the pod's own `localhost`. Raises OSError."""
        namespaces = self.pod(pod_id).namespaces
        return await asyncio.open_connection(sock=await asyncio.to_thread(network.connect, namespaces, port))

    async def close(self) -> None:
        """End every pod."""
        await asyncio.gather(*(self.remove_pod(pod_id) for pod_id in list(self.pods)))

    # Behind the scenes

    async def _follow(self, container: Container, process: Process) -> None:
        exit_code = await process.wait()
        container.finish(exit_code, container.reason or ("Completed" if exit_code == 0 else "Error"))

    def _watch_memory(self) -> None:
        """Keep one watch going while a container with a limit runs, and none otherwise."""
        if self._limited() and (self._memory_watch is None or self._memory_watch.done()):
            self._memory_watch = self._spawn(self._enforce_memory_limits())

    def _limited(self) -> list[Container]:
        return [c for c in self.containers.values() if c.memory_limit > 0 and c.state is State.RUNNING]

    async def _enforce_memory_limits(self) -> None:
        while limited := self._limited():
            for container in limited:
                assert container.process is not None
                used = measure(container.process.pid).anonymous_bytes
                if used > container.memory_limit:
                    log.info("container %s uses %d of %d bytes", container.id, used, container.memory_limit)
                    container.reason = "OOMKilled"
                    container.process.signal(signal.SIGKILL)
            await asyncio.sleep(MEMORY_CHECK_S)

    def set_memory_limit(self, container_id: str, limit: int) -> None:
        self.container(container_id).memory_limit = limit
        self._watch_memory()

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _stop_signal(config: Any) -> int:
    """The pod's stop signal (the enumeration uses the signals' own names), SIGTERM by default."""
    field_type = config.DESCRIPTOR.fields_by_name["stop_signal"].enum_type
    name = field_type.values_by_number[config.stop_signal].name
    if name.startswith("SIGRTMIN"):
        return signal.SIGRTMIN + int(name.removeprefix("SIGRTMIN").replace("PLUS", "") or 0)
    if name.startswith("SIGRTMAX"):
        return signal.SIGRTMAX - int(name.removeprefix("SIGRTMAX").replace("MINUS", "") or 0)
    return getattr(signal, name, signal.SIGTERM)


def _collect(into: bytearray) -> Any:
    def collect(text: bytes) -> None:
        into.extend(text[: max(0, MAX_EXEC_OUTPUT - len(into))])

    return collect
