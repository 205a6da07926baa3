"""``make demo``: from nothing to tokens, up to three replicas and back, in one sitting.

make demo            # tell the story, clean up
make demo KEEP=1     # stay up afterwards and say how to talk to it
"""

from __future__ import annotations

import argparse
import os

from localcluster.cluster import KUBECONFIG_VARIABLE, CommandFailed, ComponentFailed
from localcluster.obstacles import command, require_room, temporary_folder

from sheaf_e2e.checkout import CHECKOUT, open_sheaf_cluster
from sheaf_e2e.demo import alone, first, story
from sheaf_e2e.demo.console import Console
from sheaf_e2e.demo.picture import draw
from sheaf_e2e.demo_model import demo_model

PICTURE = CHECKOUT / ".run" / "demo.svg"
_SCRATCH_BYTES = 500_000_000  # etcd, logs, pods


def tell(console: Console, keep: bool) -> None:
    require_room({temporary_folder(): _SCRATCH_BYTES}, "the demo", "set TMPDIR to a folder on a larger disk")
    console.step("The model: SmolLM2-135M-Instruct")
    model = demo_model(console.say)
    console.say(str(model))
    if not os.environ.get(KUBECONFIG_VARIABLE):
        first.minutes(model, console)
    console.step("A real Kubernetes with real KServe, as plain processes")
    with open_sheaf_cluster(console.say) as cluster:
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="stay up at the end")
    arguments = parser.parse_args()
    with alone.claim(), Console() as console:
        try:
            tell(console, arguments.keep)
        except KeyboardInterrupt:
            console.step("Interrupted; everything is gone again")
            raise


if __name__ == "__main__":
    command(main, story.StoryFailed, ComponentFailed, CommandFailed)
