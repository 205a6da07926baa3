"""``make demo``: from nothing to tokens, up to three replicas and back, in one sitting.

make demo            # tell the story, clean up
make demo KEEP=1     # stay up afterwards and say how to talk to it
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from sheaf_e2e.binaries import BuildFailed, anything_to_build
from sheaf_e2e.choose import KUBECONFIG_VARIABLE, open_cluster
from sheaf_e2e.cluster import CommandFailed
from sheaf_e2e.demo import first, story
from sheaf_e2e.demo.console import Console
from sheaf_e2e.demo.picture import draw
from sheaf_e2e.launcher import CHECKOUT, ComponentFailed, Launcher
from sheaf_e2e.model import demo_model
from sheaf_e2e.namespace import NamespaceUnavailable

PICTURE = CHECKOUT / ".run" / "demo.svg"


def tell(console: Console, keep: bool) -> None:
    console.step("The model: SmolLM2-135M-Instruct")
    model = demo_model(console.say)
    console.say(str(model))
    first_minutes(model, console)
    console.step("A real Kubernetes with real KServe, as plain processes")
    with open_cluster(report=console.say) as cluster:
        cluster.model_volume("smollm2", model)
        story.install_operator(cluster, console)
        console.step("One LLMDeployment")
        resource = story.apply_sample(cluster, console)
        metadata = resource["metadata"]
        base_url = cluster.url(f"{metadata['name']}-predictor", metadata["namespace"])
        console.step("A question")
        story.ask(base_url, resource["spec"]["model"]["servedName"], console)
        console.step("Load, and what the autoscaler makes of it")
        outcomes, recording = story.scale_up_and_down(cluster, resource, base_url, console)
        console.step("What the users saw")
        draw(recording, outcomes, PICTURE)
        console.say(f"drawn from this run's samples: {PICTURE}")
        story.summary(outcomes, console)
        if keep:
            story.keep(cluster, resource, base_url, console)
    console.step("Everything is gone again")


def first_minutes(model: Path, console: Console) -> None:
    """Where the cluster has to be built first, or cannot be had, answer a question without it."""
    external = bool(os.environ.get(KUBECONFIG_VARIABLE))
    try:
        if not external:
            Launcher().stop()  # takes a fraction of a second, and tells whether a cluster is possible at all
    except NamespaceUnavailable:
        console.step("A first answer, without a cluster")
        first.answer(model, console)
        raise
    if external or not anything_to_build():
        return
    console.step("A first answer, while Kubernetes and KServe are built in the background (once)")
    with first.Build() as build:
        first.answer(model, console)
        console.say("now the build, at full speed")
        build.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="stay up at the end")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console()
    try:
        tell(console, arguments.keep)
    except KeyboardInterrupt:
        console.step("Interrupted; everything is gone again")
        sys.exit(130)
    except (story.StoryFailed, NamespaceUnavailable, ComponentFailed, BuildFailed, CommandFailed) as error:
        console.bad(str(error))
        sys.exit(1)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
