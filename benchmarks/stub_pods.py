"""A thousand model pods on one port: every address of 127.0.0.0/8 answers /metrics like an idle model server.

``python stub_pods.py PORT BUSY_FILE``; addresses that the file names, one a line, report a queue instead.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

SERIES = """\
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} 0.25
vllm:cache_config_info{{block_size="16",num_gpu_blocks="4096",engine="0"}} 1.0
vllm:request_success_total{{engine="0",finished_reason="stop"}} 30
sheaf:blocks_live{{engine="0",model_name="m"}} 25
sheaf:queued_tokens{{engine="0",model_name="m"}} 0
sheaf:oldest_wait_seconds{{engine="0",model_name="m"}} 0
sheaf:weights_bytes{{engine="0",model_name="m"}} 2.7e+08
sheaf:max_num_seqs{{engine="0",model_name="m"}} 8
"""
# Histograms that a real server has beside them.
OTHERS = "".join(
    f'vllm:{name}_bucket{{engine="0",le="{bound}",model_name="m"}} {bound}\n'
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds")
    for bound in range(40)
)


def answer(busy: bool) -> bytes:
    body = (OTHERS + SERIES.format(running=8 if busy else 0, waiting=30 if busy else 0)).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


ANSWERS = {busy: answer(busy) for busy in (False, True)}


class Pods(asyncio.Protocol):
    def __init__(self, busy_file: Path) -> None:
        self._busy_file = busy_file

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._address: str = transport.get_extra_info("sockname")[0]

    def data_received(self, data: bytes) -> None:
        busy = self._busy_file.stat().st_size > 0 and self._address in self._busy_file.read_text().split()
        for _ in range(data.count(b"\r\n\r\n")):
            self._transport.write(ANSWERS[busy])


async def main(port: int, busy_file: Path) -> None:
    server = await asyncio.get_running_loop().create_server(
        lambda: Pods(busy_file), "0.0.0.0", port, backlog=4096
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Path(sys.argv[2]).touch()
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
