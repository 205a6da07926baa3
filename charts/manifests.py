"""Write manifests/ from the chart: `python charts/manifests.py`, or `make manifests`.

The chart is the one source. What `kubectl apply -k manifests/` installs is what Helm would install as release
`sheaf` in namespace `sheaf-system` with default values; a test holds the files to that.
"""

from __future__ import annotations

from pathlib import Path

from helm_python import Chart

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts" / "sheaf"
RELEASE, NAMESPACE = "sheaf", "sheaf-system"

# The folder of the ClusterServingRuntime is a kustomization of its own, since it needs KServe's kinds.
FILES = {
    "crd.yaml": "crd.yaml",
    "rbac.yaml": "rbac.yaml",
    "user-roles.yaml": "user-roles.yaml",
    "deployment.yaml": "deployment.yaml",
    "service.yaml": "service.yaml",
    "serving-runtime.yaml": "serving-runtime/serving-runtime.yaml",
}
HEAD = "# Generated from charts/sheaf/templates/{} by `make manifests`. Do not edit.\n"


def manifests() -> dict[Path, str]:
    """Every generated file with its text."""
    values = {"servingRuntime": {"create": "Always"}}
    with Chart.load(CHART) as chart:
        rendered = chart.render(values, name=RELEASE, namespace=NAMESPACE)
    texts = {Path(path).name: text.strip() + "\n" for path, text in rendered.items() if text.strip()}
    texts.pop("NOTES.txt", None)
    if unknown := texts.keys() - FILES.keys():
        raise ValueError(f"give {', '.join(sorted(unknown))} a place in FILES of {__file__}")
    files = {}
    for template, place in FILES.items():
        text = texts[template]
        generated = text.startswith("# Generated from ")  # the CRD says itself where it comes from
        files[ROOT / "manifests" / place] = text if generated else HEAD.format(template) + text
    return files


def main() -> None:
    for path, text in manifests().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
