"""The program of the webhook's pod (see ``admission``): its argument is what each path adds to a kind."""

from __future__ import annotations

import base64
import copy
import json
import ssl
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

PORT = 8443


def merged(live: Any, added: Any) -> Any:
    """``live`` with what ``added`` says: mappings are merged, items appended unless they are there."""
    if isinstance(live, dict) and isinstance(added, dict):
        return {**live, **{key: merged(live.get(key), value) for key, value in added.items()}}
    if isinstance(live, list) and isinstance(added, list):
        names = {item.get("name") for item in live if "name" in item}
        return live + [item for item in added if item not in live and item.get("name") not in names]
    return copy.deepcopy(added)


class _Handler(BaseHTTPRequestHandler):
    additions: dict[str, dict[str, dict[str, Any]]]

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
        added = self.additions.get(self.path.split("?")[0], {}).get(request["kind"]["kind"], {})
        live = request["object"]
        operations = [
            {"op": "add", "path": f"/{key}", "value": merged(live.get(key), value)}
            for key, value in added.items()
        ]
        response = {"uid": request["uid"], "allowed": True, "patchType": "JSONPatch"}
        response["patch"] = base64.b64encode(json.dumps(operations).encode()).decode()
        answer = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    _Handler.additions = json.loads(sys.argv[1])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
    server = HTTPServer(("", PORT), _Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
