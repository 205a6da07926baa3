"""spec.model.adapters on a real cluster: added without a restart, there again after one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from localcluster.cluster import Cluster, Object, wait_until
from safetensors.numpy import save_file
from sheaf_e2e.deployed import Deployed, manifest
from sheaf_e2e.operator_faults import OperatorFaults

pytestmark = pytest.mark.cluster
HIDDEN, RANK, LAYERS = 576, 4, (0, 1)  # of the demo model
PROMPT = "The capital of France is"


def write_adapter(folder: Path, seed: int, **config: Any) -> Path:
    """As peft writes it: random weights that change the queries of the first layers a lot."""
    folder.mkdir(parents=True)
    known = {"peft_type": "LORA", "r": RANK, "lora_alpha": 64, "target_modules": ["q_proj"]}
    known |= {"layers_to_transform": list(LAYERS), "base_model_name_or_path": "demo"}
    (folder / "adapter_config.json").write_text(json.dumps(known | config))
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in LAYERS:
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        for name, shape in (("lora_A", (RANK, HIDDEN)), ("lora_B", (HIDDEN, RANK))):
            tensors[f"{prefix}.{name}.weight"] = random.standard_normal(shape).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def entry(name: str) -> Object:
    return {"name": name, "path": f"/adapters/{name}"}


def states(status: Object) -> dict[str, str]:
    return {a["name"]: a["state"] for a in status.get("adapters", [])}


def identity(model: Deployed) -> list[tuple[str, int]]:
    """Each pod's uid and how often its containers were restarted."""
    return [
        (pod["metadata"]["uid"], sum(s["restartCount"] for s in pod["status"]["containerStatuses"]))
        for pod in model.pods()
    ]


def answer(model: Deployed, name: str) -> str:
    body = {"model": name, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    said = httpx.post(model.url + "/v1/completions", json=body, timeout=60, trust_env=False)
    return str(said.raise_for_status().json()["choices"][0]["text"])


def test_adapters_of_a_model(
    operator: Cluster, namespace: str, model_claim: str, faults: OperatorFaults, tmp_path: Path
) -> None:
    for seed, name in enumerate(("one", "two")):
        write_adapter(tmp_path / "adapters" / name, seed)
    write_adapter(tmp_path / "adapters" / "broken", 2, use_dora=True)
    for folder in (tmp_path, tmp_path / "adapters"):
        folder.chmod(0o755)  # pods run as another user
    operator.model_volume("adapters", tmp_path / "adapters", namespace)
    resource = manifest(
        "m",
        namespace,
        f"pvc://{model_claim}",
        512,
        "--kv-cache-memory",
        "64MiB",
        termination={"drainTimeoutSeconds": 5},
        autoscaling={"mode": "Disabled"},
        pod={
            "volumes": [
                {"name": "adapters", "persistentVolumeClaim": {"claimName": "adapters", "readOnly": True}}
            ],
            "volumeMounts": [{"name": "adapters", "mountPath": "/adapters", "readOnly": True}],
        },
    )
    resource["spec"]["engine"]["maxLoras"] = 2
    resource["spec"]["model"]["adapters"] = [entry("one")]
    model = Deployed(operator, resource)
    model.wait_condition("Ready", "True", "Serving", timeout=120)
    model.wait(lambda s: states(s) == {"one": "Ready"}, "the first adapter is there")
    plain, first = answer(model, "m"), answer(model, "one")
    assert plain != first
    before = identity(model)

    # A second and a broken one: no restart, and the broken one hurts nobody.
    model.patch({"model": {"adapters": [entry("one"), entry("two"), entry("broken")]}})
    model.wait(
        lambda s: states(s) == {"one": "Ready", "two": "Ready", "broken": "Failed"},
        "the second is there and the broken one failed",
    )
    status = model.get()["status"]
    [broken] = [a for a in status["adapters"] if a["name"] == "broken"]
    assert broken["reason"] == "LoadFailed"
    assert "use_dora" in broken["message"]
    assert answer(model, "two") not in (plain, first)
    assert (answer(model, "m"), answer(model, "one")) == (plain, first)
    model.wait_condition("Ready", "True", "Serving")
    assert identity(model) == before

    # The container dies: its successor has them when it is ready.
    [pod] = model.pod_names()
    faults.kill_pod(pod, namespace)
    wait_until(lambda: identity(model) != before, 60, "the container was started again")
    model.wait_condition("Ready", "True", "Serving", timeout=120)
    wait_until(lambda: answers(model, "two"), 60, "the restarted container answers")
    assert answer(model, "one") == first

    # One is taken away, still without a restart.
    before = identity(model)
    model.patch({"model": {"adapters": [entry("one")]}})
    model.wait(lambda s: states(s) == {"one": "Ready"}, "the others are gone from the status")
    wait_until(lambda: not answers(model, "two"), 60, "the adapter that was taken away is not served")
    assert identity(model) == before


def answers(model: Deployed, name: str) -> bool:
    try:
        answer(model, name)
    except httpx.HTTPError:
        return False
    return True
