"""What containers and pods use, as CRI messages."""

import time
from typing import Any

from localcluster.cri.runtime import Container, Pod, State
from localcluster.cri.usage import Usage, measure
from localcluster.setup import cri_api

pb, _ = cri_api.load()


def _usage(container: Container) -> Usage:
    running = container.state is State.RUNNING and container.process
    return measure(container.process.pid) if running and container.process else Usage()


def _cpu(usage: Usage, now: int) -> Any:
    return pb.CpuUsage(timestamp=now, usage_core_nano_seconds=pb.UInt64Value(value=usage.cpu_ns))


def _memory(usage: Usage, now: int, limit: int) -> Any:
    return pb.MemoryUsage(
        timestamp=now,
        working_set_bytes=pb.UInt64Value(value=usage.resident_bytes),
        usage_bytes=pb.UInt64Value(value=usage.resident_bytes),
        rss_bytes=pb.UInt64Value(value=usage.anonymous_bytes),
        available_bytes=pb.UInt64Value(value=max(0, limit - usage.anonymous_bytes)) if limit else None,
    )


def container_stats(container: Container) -> Any:
    usage, now = _usage(container), time.time_ns()
    return pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=container.id,
            metadata=container.config.metadata,
            labels=container.config.labels,
            annotations=container.config.annotations,
        ),
        cpu=_cpu(usage, now),
        memory=_memory(usage, now, container.memory_limit),
    )


def pod_stats(pod: Pod) -> Any:
    usage, now = sum((_usage(each) for each in pod.containers.values()), Usage()), time.time_ns()
    return pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=pod.id,
            metadata=pod.config.metadata,
            labels=pod.config.labels,
            annotations=pod.config.annotations,
        ),
        linux=pb.LinuxPodSandboxStats(
            cpu=_cpu(usage, now),
            memory=_memory(usage, now, 0),
            process=pb.ProcessUsage(timestamp=now, process_count=pb.UInt64Value(value=usage.processes)),
            containers=[
                container_stats(each) for each in pod.containers.values() if each.state is State.RUNNING
            ],
        ),
    )
