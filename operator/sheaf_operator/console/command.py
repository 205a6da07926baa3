"""`sheaf status NAME`: arguments, the loop that draws, and errors in one line."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from typing import TextIO

from sheaf_operator.console.kubectl import Kubectl, Refused, Run, run
from sheaf_operator.console.text import fitted, render
from sheaf_operator.console.view import View, build, is_ready

OFF_TERMINAL_WIDTH = 120
CLEAR = "\x1b[H\x1b[J"


def main(argv: list[str], call: Run = run) -> int:
    options = _parser().parse_args(argv)
    given = [f"--{name}={value}" for name in ("kubeconfig", "context") if (value := getattr(options, name))]
    kubectl, out = Kubectl(given, call), sys.stdout
    live = out.isatty() and not options.once and options.output == "text"
    try:
        namespace = options.namespace or kubectl.namespace()
        while True:
            view = look(kubectl, namespace, options.name)
            _draw(view, options.output, out, live)
            if not live:
                return 0
            time.sleep(options.interval)
    except Refused as error:
        print(f"sheaf status: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # a pager or head that has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def look(kubectl: Kubectl, namespace: str, name: str) -> View:
    """The model as it is now. What besides the resource cannot be read becomes a note. Raises Refused."""
    owner = kubectl.model(namespace, name)
    try:
        pods = kubectl.pods(namespace, name)
    except Refused as error:
        return build(owner, [], {}, [f"its pods cannot be read: {error}"])
    # A copy that somebody made of a pod for debugging keeps the label and is no replica.
    pods = [
        p for p in pods if any(o["kind"] == "ReplicaSet" for o in p["metadata"].get("ownerReferences", []))
    ]
    answering = [pod["metadata"]["name"] for pod in pods if is_ready(pod)]
    return build(owner, pods, kubectl.readings(namespace, answering, tls="tls" in owner["spec"]))


def _draw(view: View, output: str, out: TextIO, live: bool) -> None:
    if output == "json":
        print(json.dumps(asdict(view), indent=2), file=out)
        return
    terminal = out.isatty()
    size = shutil.get_terminal_size()
    width = size.columns if terminal else OFF_TERMINAL_WIDTH
    coloured = terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
    lines = render(view, width, coloured)
    if live:
        lines = [CLEAR + lines[0], *fitted(lines, size.lines)[1:]]
    print("\n".join(lines), file=out, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sheaf status",
        description="Replicas, queues, KV cache, last decisions and conditions of a model, drawn anew until "
        "Ctrl-C; once where the output is no terminal.",
        allow_abbrev=False,
    )
    parser.add_argument("name", help="the LLMDeployment")
    parser.add_argument("-n", "--namespace", help="default: that of the present context")
    parser.add_argument("--once", action="store_true", help="draw once and end")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="between two looks")
    parser.add_argument("--context", help="of the kubeconfig")
    parser.add_argument("--kubeconfig", help="default: as kubectl finds it")
    return parser
