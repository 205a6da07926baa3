"""Telling pods which adapters they should have. `desired.adapters` says what; the runtime does it."""

from __future__ import annotations

import logging

from sheaf_operator.api.spec import LLMDeploymentSpec
from sheaf_operator.cluster.client import Cluster
from sheaf_operator.cluster.errors import ApiError, Unreachable
from sheaf_operator.cluster.lease import Lease
from sheaf_operator.cluster.observed import Observed, pod_name
from sheaf_operator.desired import adapters
from sheaf_operator.run.telemetry import Telemetry

log = logging.getLogger(__name__)


class Teller:
    def __init__(self, cluster: Cluster, lease: Lease, telemetry: Telemetry) -> None:
        self._cluster, self._lease, self._telemetry = cluster, lease, telemetry

    async def tell(self, spec: LLMDeploymentSpec, observed: Observed) -> ApiError | Unreachable | None:
        """The first write that failed: the other pods hear of it all the same."""
        text, failed = adapters.wanted(spec), None
        for pod in adapters.untold(spec, observed):
            log.info("%s/%s: pod %s: adapters %s", observed.namespace, observed.name, pod_name(pod), text)
            try:
                async with self._lease.writing():
                    await self._cluster.set_adapters(pod, text)
                self._telemetry.writes.labels("Pod").inc()
            except (ApiError, Unreachable) as error:
                gone = isinstance(error, ApiError) and error.code in (404, 409)
                failed = failed or (None if gone else error)
        return failed
