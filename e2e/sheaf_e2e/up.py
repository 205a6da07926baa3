"""``python -m sheaf_e2e.up``: a local cluster with the operator that stays up until Ctrl-C."""

from __future__ import annotations

import argparse

from localcluster.cluster import ComponentFailed, LocalCluster
from localcluster.obstacles import command
from localcluster.progress import to_stderr
from localcluster.setup.golang import BuildFailed

from sheaf_e2e.checkout import image_table
from sheaf_e2e.demo_model import demo_model
from sheaf_e2e.release import install_operator


def main() -> None:
    argparse.ArgumentParser(prog="python -m sheaf_e2e.up", description=__doc__).parse_args()
    model = demo_model()
    try:
        with LocalCluster(image_table()) as cluster:
            cluster.model_volume("smollm2", model)
            install_operator(cluster)
            _print_usage(cluster)
            _show_services(cluster)
    finally:
        to_stderr("\nThe cluster is gone.")


def _print_usage(cluster: LocalCluster) -> None:
    print(
        f"""
export KUBECONFIG={cluster.kubeconfig}
alias kubectl={cluster.kubectl_program}
kubectl apply -f manifests/samples/smollm2.yaml    # PersistentVolumeClaim smollm2 holds the demo model
Logs of the control plane: {cluster.launcher.log_folder}
Ctrl-C ends the cluster. A URL is printed here for each model that is served.
""",
        flush=True,
    )


def _show_services(cluster: LocalCluster) -> None:
    """Print a URL for every predictor's Service that appears, for as long as we run."""
    shown: set[str] = set()
    day = 24 * 3600.0
    while True:
        for services in cluster.api.watch(
            "v1", "Service", labels="serving.kserve.io/inferenceservice", timeout=day
        ):
            for service in services:
                metadata, spec = service["metadata"], service["spec"]
                if metadata["uid"] in shown or spec.get("clusterIP", "None") == "None":
                    continue
                shown.add(metadata["uid"])
                url = cluster.url(metadata["name"], metadata["namespace"])
                print(f"{metadata['namespace']}/{metadata['name']}: {url}/v1/chat/completions", flush=True)


if __name__ == "__main__":
    command(main, ComponentFailed, BuildFailed)
