"""The CRI runtime service: messages in, messages out. The rules are in `runtime`."""

import asyncio
import functools
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc

from localcluster.cri.process import Process
from localcluster.cri.runtime import Container, NotFound, Output, Pod, Refused, Runtime, State
from localcluster.cri.stats import container_stats, pod_stats
from localcluster.cri.streaming import StreamingServer, Wanted
from localcluster.setup import cri_api

pb, rpc = cri_api.load()
log = logging.getLogger("cri.service")

RUNTIME_NAME = "sheaf"
VERSION = "0.1.0"

_CODES: list[tuple[type[BaseException], grpc.StatusCode]] = [
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (Refused, grpc.StatusCode.FAILED_PRECONDITION),
    (TimeoutError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (ValueError, grpc.StatusCode.INVALID_ARGUMENT),
    (Exception, grpc.StatusCode.INTERNAL),
]
_STATES = {
    State.CREATED: pb.CONTAINER_CREATED,
    State.RUNNING: pb.CONTAINER_RUNNING,
    State.EXITED: pb.CONTAINER_EXITED,
}

Method = Callable[[Any, Any], Awaitable[Any]]


def answers(method: Method) -> Callable[[Any, Any, Any], Awaitable[Any]]:
    """Make `async method(self, request)` a gRPC method.

    It runs to its end even if the caller gives up, and its exceptions become status codes.
    """

    @functools.wraps(method)
    async def answer(self: Any, request: Any, context: Any) -> Any:
        try:
            return await asyncio.shield(asyncio.ensure_future(method(self, request)))
        except Exception as error:
            code = next(code for kind, code in _CODES if isinstance(error, kind))
            if code is grpc.StatusCode.INTERNAL:
                log.exception("%s failed", method.__name__)
            await context.abort(code, str(error) or type(error).__name__)

    return answer


def unimplemented(reason: str) -> Callable[[Any, Any, Any], Awaitable[Any]]:
    async def answer(self: Any, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, reason)

    return answer


def matches(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return all(labels.get(name) == value for name, value in wanted.items())


class RuntimeService(rpc.RuntimeServiceServicer):  # type: ignore[name-defined,misc]
    def __init__(self, runtime: Runtime, streaming: StreamingServer) -> None:
        self._runtime = runtime
        self._streaming = streaming

    @answers
    async def Version(self, request: Any) -> Any:
        return pb.VersionResponse(
            version="0.1.0", runtime_name=RUNTIME_NAME, runtime_version=VERSION, runtime_api_version="v1"
        )

    @answers
    async def Status(self, request: Any) -> Any:
        conditions = [
            pb.RuntimeCondition(type=name, status=True) for name in ("RuntimeReady", "NetworkReady")
        ]
        return pb.StatusResponse(status=pb.RuntimeStatus(conditions=conditions))

    @answers
    async def RuntimeConfig(self, request: Any) -> Any:
        return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=pb.CGROUPFS))

    @answers
    async def UpdateRuntimeConfig(self, request: Any) -> Any:
        return pb.UpdateRuntimeConfigResponse()

    # Pods

    @answers
    async def RunPodSandbox(self, request: Any) -> Any:
        namespaces = request.config.linux.security_context.namespace_options
        host_network = namespaces.network == pb.NODE
        if namespaces.pid != pb.CONTAINER:
            raise Refused("shared process namespaces (hostPID, shareProcessNamespace) are not supported")
        if not host_network and any(mapping.host_port for mapping in request.config.port_mappings):
            raise Refused("hostPort is not supported: use a Service")
        pod = await self._runtime.run_pod(request.config, request.runtime_handler, host_network=host_network)
        return pb.RunPodSandboxResponse(pod_sandbox_id=pod.id)

    @answers
    async def StopPodSandbox(self, request: Any) -> Any:
        await self._runtime.stop_pod(request.pod_sandbox_id)
        return pb.StopPodSandboxResponse()

    @answers
    async def RemovePodSandbox(self, request: Any) -> Any:
        await self._runtime.remove_pod(request.pod_sandbox_id)
        return pb.RemovePodSandboxResponse()

    @answers
    async def PodSandboxStatus(self, request: Any) -> Any:
        pod = self._runtime.pod(request.pod_sandbox_id)
        options = pod.config.linux.security_context.namespace_options
        status = pb.PodSandboxStatus(
            id=pod.id,
            metadata=pod.config.metadata,
            state=_pod_state(pod),
            created_at=pod.created_at,
            network=pb.PodSandboxNetworkStatus(ip=pod.address),
            linux=pb.LinuxPodSandboxStatus(namespaces=pb.Namespace(options=options)),
            labels=pod.config.labels,
            annotations=pod.config.annotations,
            runtime_handler=pod.handler,
        )
        return pb.PodSandboxStatusResponse(status=status)

    @answers
    async def ListPodSandbox(self, request: Any) -> Any:
        wanted = request.filter
        items = [
            pb.PodSandbox(
                id=pod.id,
                metadata=pod.config.metadata,
                state=_pod_state(pod),
                created_at=pod.created_at,
                labels=pod.config.labels,
                annotations=pod.config.annotations,
                runtime_handler=pod.handler,
            )
            for pod in self._runtime.pods.values()
            if wanted.id in ("", pod.id)
            and (not wanted.HasField("state") or wanted.state.state == _pod_state(pod))
            and matches(wanted.label_selector, pod.config.labels)
        ]
        return pb.ListPodSandboxResponse(items=items)

    @answers
    async def UpdatePodSandboxResources(self, request: Any) -> Any:
        self._runtime.pod(request.pod_sandbox_id)
        return pb.UpdatePodSandboxResourcesResponse()

    # Containers

    @answers
    async def CreateContainer(self, request: Any) -> Any:
        log_path = Path(request.sandbox_config.log_directory, request.config.log_path)
        container = self._runtime.create_container(request.pod_sandbox_id, request.config, log_path)
        return pb.CreateContainerResponse(container_id=container.id)

    @answers
    async def StartContainer(self, request: Any) -> Any:
        await self._runtime.start_container(request.container_id)
        return pb.StartContainerResponse()

    @answers
    async def StopContainer(self, request: Any) -> Any:
        await self._runtime.stop_container(request.container_id, request.timeout)
        return pb.StopContainerResponse()

    @answers
    async def RemoveContainer(self, request: Any) -> Any:
        await self._runtime.remove_container(request.container_id)
        return pb.RemoveContainerResponse()

    @answers
    async def ListContainers(self, request: Any) -> Any:
        wanted = request.filter
        containers = [
            pb.Container(
                id=container.id,
                pod_sandbox_id=container.pod.id,
                metadata=container.config.metadata,
                image=_image_spec(container),
                image_ref=container.image.name,
                image_id=container.image.name,
                state=_STATES[container.state],
                created_at=container.created_at,
                labels=container.config.labels,
                annotations=container.config.annotations,
            )
            for container in self._runtime.containers.values()
            if wanted.id in ("", container.id)
            and wanted.pod_sandbox_id in ("", container.pod.id)
            and (not wanted.HasField("state") or wanted.state.state == _STATES[container.state])
            and matches(wanted.label_selector, container.config.labels)
        ]
        return pb.ListContainersResponse(containers=containers)

    @answers
    async def ContainerStatus(self, request: Any) -> Any:
        container = self._runtime.container(request.container_id)
        status = pb.ContainerStatus(
            id=container.id,
            metadata=container.config.metadata,
            state=_STATES[container.state],
            created_at=container.created_at,
            started_at=container.started_at,
            finished_at=container.finished_at,
            exit_code=container.exit_code,
            image=_image_spec(container),
            image_ref=container.image.name,
            image_id=container.image.name,
            reason=container.reason if container.state is State.EXITED else "",
            message=container.message,
            labels=container.config.labels,
            annotations=container.config.annotations,
            mounts=container.config.mounts,
            log_path=str(container.log.path),
            resources=pb.ContainerResources(linux=container.config.linux.resources),
            user=pb.ContainerUser(
                linux=pb.LinuxContainerUser(uid=container.spec.uid, gid=container.spec.gid)
            ),
            stop_signal=container.config.stop_signal or pb.SIGTERM,
        )
        info = (
            {"info": json.dumps({"pid": container.process.pid})}
            if container.process and request.verbose
            else {}
        )
        return pb.ContainerStatusResponse(status=status, info=info)

    @answers
    async def UpdateContainerResources(self, request: Any) -> Any:
        container = self._runtime.container(request.container_id)
        container.config.linux.resources.MergeFrom(request.linux)
        self._runtime.set_memory_limit(container.id, container.config.linux.resources.memory_limit_in_bytes)
        return pb.UpdateContainerResourcesResponse()

    @answers
    async def ReopenContainerLog(self, request: Any) -> Any:
        container = self._runtime.container(request.container_id)
        if container.state is not State.RUNNING:
            raise Refused(f"container {container.id} is not running")
        container.log.reopen()
        return pb.ReopenContainerLogResponse()

    @answers
    async def ExecSync(self, request: Any) -> Any:
        try:
            exit_code, stdout, stderr = await self._runtime.exec_sync(
                request.container_id, list(request.cmd), request.timeout
            )
        except TimeoutError:
            raise TimeoutError(
                f"{list(request.cmd)} took longer than {request.timeout} s and was killed"
            ) from None
        return pb.ExecSyncResponse(exit_code=exit_code, stdout=stdout, stderr=stderr)

    @answers
    async def Exec(self, request: Any) -> Any:
        self._runtime.running(request.container_id)

        def begin(on_stdout: Output, on_stderr: Output) -> AbstractAsyncContextManager[Process]:
            return self._runtime.exec(
                request.container_id,
                list(request.cmd),
                on_stdout,
                on_stderr,
                with_input=request.stdin,
                terminal=request.tty,
            )

        wanted = Wanted(request.stdin, request.stdout, request.stderr, request.tty)
        return pb.ExecResponse(url=self._streaming.command(wanted, begin))

    @answers
    async def Attach(self, request: Any) -> Any:
        container, _ = self._runtime.running(request.container_id)
        wanted = Wanted(
            request.stdin,
            request.stdout,
            request.stderr,
            request.tty,
            input_stays_open=not container.config.stdin_once,
        )
        begin = functools.partial(self._runtime.attach, request.container_id)
        return pb.AttachResponse(url=self._streaming.command(wanted, begin))

    @answers
    async def PortForward(self, request: Any) -> Any:
        pod = self._runtime.pod(request.pod_sandbox_id)
        return pb.PortForwardResponse(
            url=self._streaming.forward(functools.partial(self._runtime.connect, pod.id))
        )

    # Usage

    @answers
    async def ContainerStats(self, request: Any) -> Any:
        return pb.ContainerStatsResponse(stats=container_stats(self._runtime.container(request.container_id)))

    @answers
    async def ListContainerStats(self, request: Any) -> Any:
        wanted = request.filter
        stats = [
            container_stats(container)
            for container in self._runtime.containers.values()
            if container.state is State.RUNNING
            and wanted.id in ("", container.id)
            and wanted.pod_sandbox_id in ("", container.pod.id)
            and matches(wanted.label_selector, container.config.labels)
        ]
        return pb.ListContainerStatsResponse(stats=stats)

    @answers
    async def PodSandboxStats(self, request: Any) -> Any:
        return pb.PodSandboxStatsResponse(stats=pod_stats(self._runtime.pod(request.pod_sandbox_id)))

    @answers
    async def ListPodSandboxStats(self, request: Any) -> Any:
        wanted = request.filter
        stats = [
            pod_stats(pod)
            for pod in self._runtime.pods.values()
            if wanted.id in ("", pod.id) and matches(wanted.label_selector, pod.config.labels)
        ]
        return pb.ListPodSandboxStatsResponse(stats=stats)

    # What this runtime does not do

    CheckpointContainer = unimplemented("checkpoints are not supported")
    GetContainerEvents = unimplemented("events are not supported: list containers instead")
    ListMetricDescriptors = ListPodSandboxMetrics = unimplemented("metrics are not supported: use the stats")
    StreamPodSandboxes = StreamContainers = StreamContainerStats = unimplemented("use the List call")
    StreamPodSandboxStats = StreamPodSandboxMetrics = unimplemented("use the List call")


def _pod_state(pod: Pod) -> Any:
    return pb.SANDBOX_READY if pod.ready else pb.SANDBOX_NOTREADY


def _image_spec(container: Container) -> Any:
    return pb.ImageSpec(image=container.config.image.user_specified_image or container.image.name)
