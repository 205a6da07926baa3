"""`python -m localcluster.cri`: serve the CRI on a unix socket until SIGTERM, then end every container."""

import argparse
import asyncio
import fcntl
import logging
import signal
from ipaddress import IPv4Network
from pathlib import Path

import grpc

from localcluster.cri import network
from localcluster.cri.image_service import ImageService
from localcluster.cri.images import read_images
from localcluster.cri.runtime import Runtime
from localcluster.cri.service import RuntimeService, rpc
from localcluster.cri.streaming import StreamingServer
from localcluster.machine import syscalls

log = logging.getLogger("cri")


async def serve(arguments: argparse.Namespace) -> None:
    state_dir: Path = arguments.state_dir.resolve()
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)  # containers become children of this process
    await asyncio.to_thread(network.prepare_node, arguments.pod_network)
    runtime = Runtime(state_dir, read_images(arguments.images), arguments.node_address, arguments.pod_network)
    streaming = StreamingServer()
    await streaming.start(arguments.node_address)
    server = grpc.aio.server()
    rpc.add_RuntimeServiceServicer_to_server(RuntimeService(runtime, streaming), server)
    rpc.add_ImageServiceServicer_to_server(ImageService(runtime, state_dir), server)
    arguments.socket.unlink(missing_ok=True)  # a predecessor's; the lock says it is gone
    server.add_insecure_port(f"unix:{arguments.socket.absolute()}")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.start()
    log.info("serving on %s", arguments.socket)
    await stop.wait()
    await server.stop(grace=0)
    await runtime.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="localcluster.cri", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="where to listen")
    parser.add_argument("--state-dir", type=Path, required=True, help="a folder of this runtime's own")
    parser.add_argument(
        "--images", type=Path, required=True, help="YAML or JSON: image patterns and commands"
    )
    parser.add_argument("--node-address", default="172.30.0.1", help="the node's address, the pods' gateway")
    parser.add_argument("--pod-network", type=IPv4Network, default=IPv4Network("10.244.0.0/24"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    arguments.state_dir.mkdir(parents=True, exist_ok=True)
    with open(arguments.state_dir / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            parser.error(f"another runtime is using {arguments.state_dir}")
        asyncio.run(serve(arguments))


if __name__ == "__main__":
    main()
