"""From what the kubelet asks for to what `container_init` starts. Pure."""

import os
from pathlib import Path
from typing import Any

from localcluster.cri.container_init import Root, Spec
from localcluster.cri.images import DEFAULT_ENV, Image
from localcluster.cri.rootfs import Mount


def container_spec(
    config: Any, image: Image, pod_files: Path, scratch: str, namespaces: list[tuple[int, int]]
) -> Spec:
    """The spec for a CRI ContainerConfig. Raises ValueError for what cannot be honoured."""
    argv = [*(config.command or image.entrypoint), *config.args]
    if not argv:
        raise ValueError(f"no command: neither the container nor the image {image.name} names one")
    security = config.linux.security_context
    if security.run_as_username:
        raise ValueError("a user by name is not supported: set runAsUser to a number")
    return Spec(
        argv=argv,
        env=container_env(config, image),
        cwd=config.working_dir or image.working_dir,
        uid=security.run_as_user.value if security.HasField("run_as_user") else image.uid,
        gid=security.run_as_group.value,
        namespaces=namespaces,
        root=Root(
            scratch=scratch,
            mounts=_mounts(config, pod_files),
            image_paths=list(image.paths),
            readonly=security.readonly_rootfs,
        ),
        no_new_privs=security.no_new_privs,
        oom_score_adj=config.linux.resources.oom_score_adj,
        terminal=config.tty,
    )


def exec_spec(
    config: Any,
    image: Image,
    argv: list[str],
    container: Spec,
    namespaces: list[tuple[int, int]],
    terminal: bool = False,
) -> Spec:
    """The spec of a command that runs in the container started with `container`."""
    return Spec(
        argv=argv,
        env=container_env(config, image),
        cwd=container.cwd,
        uid=container.uid,
        gid=container.gid,
        namespaces=namespaces,
        no_new_privs=container.no_new_privs,
        terminal=terminal,
    )


def container_env(config: Any, image: Image) -> dict[str, str]:
    """The environment: what any image has, what this one adds, what the pod says; the later wins."""
    return {**DEFAULT_ENV, **image.env, **{entry.key: os.fsdecode(entry.value) for entry in config.envs}}


def _mounts(config: Any, pod_files: Path) -> list[Mount]:
    """The pod's own files, then the kubelet's mounts, which win where they name the same place."""
    by_target = {f"/etc/{path.name}": Mount(str(path), f"/etc/{path.name}") for path in pod_files.iterdir()}
    for mount in config.mounts:
        if mount.image.image:
            raise ValueError(f"image volumes are not supported: {mount.container_path}")
        by_target[mount.container_path] = Mount(mount.host_path, mount.container_path, mount.readonly)
    return list(by_target.values())


def write_pod_files(config: Any, folder: Path) -> None:
    """The files of /etc that a pod gets from the runtime (`/etc/hosts` comes from the kubelet as a mount)."""
    folder.mkdir(parents=True)
    if config.hostname:
        (folder / "hostname").write_text(config.hostname + "\n")
    dns = config.dns_config
    lines = [f"nameserver {server}" for server in dns.servers]
    if dns.searches:
        lines.append("search " + " ".join(dns.searches))
    if dns.options:
        lines.append("options " + " ".join(dns.options))
    (folder / "resolv.conf").write_text("".join(line + "\n" for line in lines))
