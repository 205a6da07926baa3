"""`python -m localcluster.proxy`: carry all Services' traffic in this network namespace until SIGTERM."""

import argparse
import asyncio
import logging
import signal
from pathlib import Path
from typing import Any

import uvloop

from localcluster.proxy.addresses import Addresses, LoopbackAddresses
from localcluster.proxy.relay import Relay
from localcluster.proxy.table import build_table, cluster_ips
from localcluster.proxy.watch import ApiServer, Objects, follow, read_kubeconfig

log = logging.getLogger("proxy")

RETRY_S = 1.0
SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"


class Proxy:
    """Brings what the watches report to the addresses and the relay, the newest state at a time."""

    def __init__(self, addresses: Addresses, relay: Relay) -> None:
        self._addresses, self._relay = addresses, relay
        self._known: dict[str, Objects] = {}
        self._changed = asyncio.Event()

    def report(self, kind: str, objects: Objects) -> None:
        self._known[kind] = objects
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled. Nothing is applied before both kinds are known."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if len(self._known) == 2 and not await self._apply():
                await asyncio.sleep(RETRY_S)
                self._changed.set()

    async def _apply(self) -> bool:
        services = list(self._known[SERVICES].values())
        table = build_table(services, self._known[SLICES].values())
        ips = {ip for service in services for ip in cluster_ips(service)}
        try:
            await asyncio.to_thread(self._addresses.hold, ips)
        except OSError as error:
            log.error("cannot put the Services' addresses on lo: %s", error)
            return False
        return not await self._relay.apply(table)


async def serve(server: ApiServer) -> None:
    proxy = Proxy(LoopbackAddresses(), Relay())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    work: list[asyncio.Task[None]] = [
        asyncio.create_task(proxy.run()),
        asyncio.create_task(follow(server, SERVICES, lambda objects: proxy.report(SERVICES, objects))),
        asyncio.create_task(follow(server, SLICES, lambda objects: proxy.report(SLICES, objects))),
    ]
    stopped: asyncio.Task[Any] = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([*work, stopped], return_when=asyncio.FIRST_COMPLETED)
    for task in work:
        task.cancel()
    for task in done - {stopped}:
        task.result()  # raises what ended it


def main() -> None:
    parser = argparse.ArgumentParser(prog="localcluster.proxy", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    uvloop.run(serve(read_kubeconfig(arguments.kubeconfig)))


if __name__ == "__main__":
    main()
