"""``sheaf serve``: from the command line to an exit status."""

from __future__ import annotations

import logging
import socket
import sys

from sheaf_runtime.flags.parser import OptionError
from sheaf_runtime.hub.errors import HubError
from sheaf_runtime.hub.name import Order, hub_name
from sheaf_runtime.server.core_process import CoreProcess
from sheaf_runtime.server.keys import ApiKeys, KeyFileError
from sheaf_runtime.server.model_folder import ModelFolderError, check_folder
from sheaf_runtime.server.options import parse
from sheaf_runtime.server.tls import Certificate, CertificateError
from sheaf_runtime.server.tracing import TracingError, check_tracing

CONFIGURATION_ERROR = 2


def main(argv: list[str], core_command: list[str] | None = None) -> int:
    """0 after a drain, 1 when the engine is lost, 2 for a configuration that cannot be served.

    ``core_command`` starts another engine core than ours.
    """
    try:
        engine, server = parse(argv)
        name = hub_name(engine.model)
        if name is None:
            if server.revision is not None:
                raise OptionError(f"--revision is for a model of the hub, and {engine.model} is a path")
            check_folder(engine.model)
        ApiKeys(server.api_key, server.api_key_file)
        if server.otlp_traces_endpoint is not None:
            check_tracing(server.otlp_traces_endpoint)
        certificate = Certificate(server.ssl_certfile, server.ssl_keyfile) if server.ssl_certfile else None
    except (OptionError, HubError, ModelFolderError, CertificateError, KeyFileError, TracingError) as error:
        return _refuse(str(error))
    logging.basicConfig(
        level=server.log_level.upper(),
        format="%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    try:
        sock = _bind(server.host, server.port)
    except OSError as error:
        place = f"{server.host} port {server.port}"
        return _refuse(f"cannot listen on {place}: {error.strerror}; choose another --host or --port")
    import uvloop

    async def run() -> int:
        core = await CoreProcess.start(core_command)
        # Imported only now: while this takes its second, the core imports its own, and probes can connect.
        from sheaf_runtime.server.run import serve

        order = Order(model=name, revision=server.revision, token=server.hf_token) if name else None
        return await serve(engine, server, sock, core, order=order, certificate=certificate)

    return uvloop.run(run())


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket; the kernel queues connections from here on. Raises ``OSError``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(2048)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def _refuse(message: str) -> int:
    print(f"sheaf serve: {message}", file=sys.stderr)
    return CONFIGURATION_ERROR
