"""manifests/ says what the chart says, and every example in it is what it claims to be."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import chart
import pytest
import yaml
from helm_python import Chart
from sheaf_operator.api.spec import LLMDeploymentSpec

MANIFESTS = chart.ROOT / "manifests"
# Everything else is generated. The namespace is what `helm install --create-namespace` makes.
BY_HAND = {"kustomization.yaml", "namespace.yaml", "serving-runtime/kustomization.yaml"}
BY_HAND_FOLDERS = {"samples", "gitops", "policies"}

spec = importlib.util.spec_from_file_location("manifests", chart.ROOT / "charts" / "manifests.py")
assert spec
assert spec.loader
generator = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generator)


def _load(path: Path) -> list[chart.Object]:
    return [d for d in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader) if d]


def _kustomized(folder: Path) -> list[chart.Object]:
    """What `kubectl kustomize` gives for a kustomization that only lists resources."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert kustomization.keys() == {"apiVersion", "kind", "resources"}
    return [obj for name in kustomization["resources"] for obj in _load(folder / name)]


def _sorted(objects: list[chart.Object]) -> list[chart.Object]:
    return sorted(objects, key=chart.identity)


def test_the_files_are_what_the_generator_writes() -> None:
    for path, text in generator.manifests().items():
        assert path.read_text() == text, f"{path.relative_to(chart.ROOT)} is stale: run `make manifests`"


def test_no_other_file_lies_among_them() -> None:
    found = {p.relative_to(MANIFESTS) for p in MANIFESTS.rglob("*") if p.is_file()}
    base = {str(p) for p in found if p.parts[0] not in BY_HAND_FOLDERS}
    assert base == {str(p.relative_to(MANIFESTS)) for p in generator.manifests()} | BY_HAND


def test_kustomize_installs_what_helm_installs() -> None:
    """Read back and compared as objects, so that the generator's own handling of text is held too."""
    namespace = chart.only(_kustomized(MANIFESTS), "Namespace")
    rest = [o for o in _kustomized(MANIFESTS) if o["kind"] != "Namespace"]
    assert namespace["metadata"]["name"] == "sheaf-system"
    assert _sorted(rest) == _sorted(chart.render())
    with_runtime = rest + _kustomized(MANIFESTS / "serving-runtime")
    assert _sorted(with_runtime) == _sorted(chart.render({"servingRuntime": {"create": "Always"}}))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_they_are_valid_kubernetes() -> None:
    for obj in _kustomized(MANIFESTS):
        chart.validate(obj)


@pytest.mark.parametrize("path", sorted((MANIFESTS / "samples").glob("*.yaml")), ids=lambda p: p.stem)
def test_samples_are_read_by_the_operator(path: Path) -> None:
    for obj in _load(path):
        if obj["kind"] == "LLMDeployment":
            LLMDeploymentSpec.model_validate(obj["spec"])
            assert set(obj) == {"apiVersion", "kind", "metadata", "spec"}


def test_the_inference_service_fits_the_serving_runtime() -> None:
    (service,) = _load(MANIFESTS / "samples" / "inferenceservice.yaml")
    (runtime,) = _load(MANIFESTS / "serving-runtime" / "serving-runtime.yaml")
    predictor = service["spec"]["predictor"]
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    formats = [f["name"] for f in runtime["spec"]["supportedModelFormats"]]
    assert predictor["model"]["modelFormat"]["name"] in formats
    assert predictor["model"]["storageUri"].startswith("pvc://")


def test_a_pod_of_the_serving_runtime_drains_within_the_default_grace_period() -> None:
    (runtime,) = _load(MANIFESTS / "serving-runtime" / "serving-runtime.yaml")
    (container,) = runtime["spec"]["containers"]
    drain = int(container["args"][container["args"].index("--drain-timeout") + 1])
    pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert drain + pre_stop < 30


# GitOps


def _argo() -> dict[str, Any]:
    return {o["metadata"]["name"]: o for o in _load(MANIFESTS / "gitops" / "argocd.yaml")}


def _flux() -> dict[tuple[str, str], Any]:
    return {(o["kind"], o["metadata"]["name"]): o for o in _load(MANIFESTS / "gitops" / "flux.yaml")}


def test_argo_applications_point_at_what_exists() -> None:
    for application in _argo().values():
        source = application["spec"]["source"]
        assert (chart.ROOT / source["path"]).is_dir() or source["path"].startswith("models/")
        assert "ServerSideApply=true" in application["spec"]["syncPolicy"]["syncOptions"]
    helm = _argo()["sheaf"]["spec"]["source"]
    chart.render(helm["helm"]["valuesObject"], name=helm["helm"]["releaseName"])
    assert helm["path"] == "charts/sheaf"


def test_flux_objects_refer_to_each_other_and_to_what_exists() -> None:
    objects = _flux()
    release = objects["HelmRelease", "sheaf"]["spec"]
    assert (chart.ROOT / release["chart"]["spec"]["chart"]).is_dir()
    source = release["chart"]["spec"]["sourceRef"]
    assert (source["kind"], source["name"]) in objects
    chart.render(release["values"], name=release["releaseName"])
    # CRDs in templates are upgraded with the rest; Helm's crds/ folder, which Flux treats apart, is not used.
    with Chart.load(chart.CHART) as loaded:
        assert loaded.crds == []
    for (kind, _), obj in objects.items():
        if kind == "Kustomization":
            reference = obj["spec"]["sourceRef"]
            assert (reference["kind"], reference["name"]) in objects
            path = obj["spec"]["path"].removeprefix("./")
            assert path.startswith("models/") or (chart.ROOT / path / "kustomization.yaml").is_file()
