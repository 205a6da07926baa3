"""Settings of the operator, from environment variables (prefix SHEAF_). Times are seconds."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields

VERSION = "0.1.0"


@dataclass(frozen=True)
class Settings:
    namespace: str = "sheaf-system"  # where the Lease lives
    identity: str = "sheaf-operator"
    watch_namespaces: tuple[str, ...] = ()  # those to look after; none for all
    watch_class: str = ""  # the sheaf.dev/operator-class of the resources to look after; empty: those without
    lease_name: str = "sheaf-operator"
    runtime_image: str = f"ghcr.io/sheaf-dev/sheaf/runtime:{VERSION}"
    autoscale_interval: float = 5.0
    scrape_timeout: float = 2.0
    resync_interval: float = 120.0
    retry_base: float = 0.5
    retry_cap: float = 30.0
    api_requests: int = 16  # to the API server at the same time
    lease_duration: float = 15.0
    victim_wait: float = 2.0  # between marking the pod that should go and lowering the count
    stall_patience: float = 600.0  # what may yet mend, such as a node that has to come, is no stall before
    cluster_domain: str = "cluster.local"  # of the cluster's Services, for status.url
    image_updates: str = "Manual"  # Rolling: models take up a newer default image one after another
    image_updates_at_once: int = 1
    image_updates_interval: float = 60.0  # between two starts
    http_port: int = 8080
    log_level: str = "info"

    @staticmethod
    def from_env(env: Mapping[str, str] = os.environ) -> Settings:
        """Raises ValueError naming the variable when a value cannot be read."""
        values: dict[str, str | float | int | tuple[str, ...]] = {
            "namespace": env.get("POD_NAMESPACE", Settings.namespace),
            "identity": env.get("POD_NAME") or socket.gethostname(),
        }
        for field in fields(Settings):
            variable = "SHEAF_" + field.name.upper()
            if variable not in env:
                continue
            kind = type(getattr(Settings, field.name))
            if kind is tuple:
                values[field.name] = tuple(filter(None, map(str.strip, env[variable].split(","))))
                continue
            try:
                value = values[field.name] = kind(env[variable])
            except ValueError as error:
                raise ValueError(f"{variable}={env[variable]!r} is not a {kind.__name__}") from error
            if field.name == "image_updates" and value not in ("Manual", "Rolling"):
                raise ValueError(f"{variable}={env[variable]!r} must be Manual or Rolling")
            if kind in (int, float) and not 0 < value < float("inf"):
                raise ValueError(f"{variable}={env[variable]!r} must be more than 0")
        return Settings(**values)  # type: ignore[arg-type]
