"""`sheaf status`: what is drawn from which objects, and what is said where nothing can be."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import kube_objects as k
import pytest
from sheaf_operator.cluster.reading import Reading, Sample, parse
from sheaf_operator.console import command, text, view
from sheaf_operator.console.kubectl import Failed, Kubectl, Refused

SCALER = {
    "desired": 3,
    "limiting": "QueueDepth",
    "decisions": [
        {
            "time": "2026-01-01T14:03:22Z",
            "from": 2,
            "to": 3,
            "limiting": "QueueDepth",
            "reason": "9 requests wait",
        },
        {
            "time": "2026-01-01T14:01:02Z",
            "from": 1,
            "to": 2,
            "limiting": "QueueDepth",
            "reason": "4 requests wait",
        },
    ],
}
CONDITIONS = [
    {"type": "Ready", "status": "True", "reason": "Serving", "message": "1 of 3 replicas ready"},
    {"type": "Stalled", "status": "True", "reason": "NeedsCapacity", "message": "0/3 nodes are available."},
]
STATUS: dict[str, Any] = {
    "observedGeneration": 4,
    "replicas": 3,
    "readyReplicas": 1,
    "url": "http://m-predictor.ns.svc.cluster.local",
    "revision": "abc123de",
    "autoscaling": SCALER,
    "conditions": CONDITIONS,
    "timeline": [],
}
SPEC = {"autoscaling": {"mode": "Builtin", "minReplicas": 1, "maxReplicas": 8}}


def owned(pod: k.Json) -> k.Json:
    pod["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": "rs"}]
    return pod


READY = owned(k.pod("m-1", ready=True))
LOADING = owned(k.pod("m-2", created="2026-01-01T00:00:11Z"))
PENDING = owned(k.unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", name="m-3"))
PENDING["metadata"]["creationTimestamp"] = "2026-01-01T00:00:12Z"
LOAD = Reading(Sample(waiting=9, running=8, kv=0.61, oldest_wait=12.34))


def model(**changes: Any) -> k.Json:
    return {**k.owner(generation=4), "spec": SPEC, "status": {**STATUS, **changes}}


def drawn(owner: k.Json, pods: list[k.Json], width: int = 120, coloured: bool = False) -> list[str]:
    return text.render(view.build(owner, pods, {"m-1": LOAD}), width, coloured)


def test_the_whole_picture() -> None:
    assert "\n".join(drawn(model(), [PENDING, READY, LOADING])) == (
        """\
ns/m  Serving
  url       http://m-predictor.ns.svc.cluster.local
  revision  abc123de
  replicas  1 ready of 3, 3 wanted (1 to 8), QueueDepth

POD  STATE           RUNS WAITS  OLDEST  KV CACHE
m-1  Ready              8     9  12.3 s  [############........]  61%
m-2  Loading            -     -       -
m-3  Unschedulable      -     -       -  0/3 nodes are available: 3 Insufficient nvidia.com/gpu.

LAST DECISIONS
  14:03:22  2 → 3   9 requests wait
  14:01:02  1 → 2   4 requests wait

CONDITIONS
  Ready              True    Serving: 1 of 3 replicas ready
  Stalled            True    NeedsCapacity: 0/3 nodes are available."""
    )


def test_what_is_wrong_is_coloured_and_nothing_is_without_a_terminal() -> None:
    plain, coloured = drawn(model(), [READY]), drawn(model(), [READY], coloured=True)
    assert "\x1b" not in "".join(plain)
    assert "\x1b[31mTrue   \x1b[0m" in coloured[-1]  # Stalled
    assert "\x1b[32m" in coloured[0]


def test_a_model_that_nobody_has_looked_at_yet() -> None:
    lines = drawn(k.owner(), [])
    assert lines[0] == "ns/m  no status"
    assert "no operator has looked at it" in lines[1]


def test_a_status_of_an_older_spec_says_so() -> None:
    assert "generation 3 of the spec; the newest is 4" in drawn(model(observedGeneration=3), [])[1]


def test_while_it_loads_the_way_so_far_is_told() -> None:
    conditions = [{"type": "Ready", "status": "False", "reason": "Progressing", "message": "loading"}]
    timeline = [{"phase": "Accepted", "seconds": 0}, {"phase": "PodCreated", "seconds": 2}]
    lines = drawn(model(conditions=conditions, timeline=timeline), [])
    assert lines[-1] == "  so far: Accepted 0 s, PodCreated 2 s"


def test_messages_cannot_move_the_cursor() -> None:
    evil = [
        {"type": "Ready", "status": "False", "reason": "Crashed", "message": "\x1b[2J\x07bad\r\nnews\u202e"}
    ]
    lines = drawn(model(conditions=evil), [])
    assert lines[-1].endswith("Crashed: [2J bad news")


def test_long_messages_are_wrapped_to_the_width() -> None:
    long = [{"type": "Ready", "status": "False", "reason": "NeedsCapacity", "message": "a word " * 30}]
    assert all(len(line) <= 80 for line in drawn(model(conditions=long), [], width=80)[1:])


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "Loading"),
        ({"phase": "Pending", "conditions": [], "containerStatuses": []}, "Pending"),
        ({"phase": "Failed", "reason": "Evicted", "conditions": [], "containerStatuses": []}, "Evicted"),
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]},
            "ImagePullBackOff",
        ),
        (
            {"initContainerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]},
            "CrashLoopBackOff",
        ),
        ({"conditions": None, "containerStatuses": None, "phase": None}, "Unknown"),
    ],
)
def test_a_pods_state_in_a_word(changes: k.Json, word: str) -> None:
    pod = copy.deepcopy(LOADING)
    pod["status"] |= changes
    assert view.state(pod) == word
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z"
    assert view.state(pod) == "Draining"


def test_a_pods_note_is_cut_to_the_width_and_a_long_list_to_the_height() -> None:
    lines = drawn(model(conditions=[]), [PENDING, *[owned(k.pod(f"m-{i}")) for i in range(4, 40)]], width=60)
    assert max(len(line) for line in lines) <= 60
    shown = text.fitted(lines, 24)
    assert len(shown) == 23
    assert shown[-1] == f"... and {len(lines) - 22} lines; --once shows them all"
    assert text.fitted(lines[:10], 24) == lines[:10]


# Reading, by a kubectl that answers from a table


class Answers:
    """kubectl by the last argument: a text, or an error's words."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.table, self.asked = table, list[list[str]]()

    def __call__(self, arguments: list[str]) -> str:
        self.asked.append(arguments)
        for end, answer in self.table.items():
            if arguments[-1].endswith(end):
                if isinstance(answer, Exception):
                    raise answer
                return answer if isinstance(answer, str) else json.dumps(answer)
        raise AssertionError(arguments)


METRICS = "vllm:num_requests_waiting 1\nvllm:num_requests_running 2\nvllm:kv_cache_usage_perc 0.5\n"
PODS = "pods?labelSelector=sheaf.dev/deployment%3Dm"


def test_it_reads_the_resource_its_pods_and_their_metrics() -> None:
    answers = Answers(
        {"/llmdeployments/m": model(), PODS: {"items": [READY]}, "m-1:8000/proxy/metrics": METRICS}
    )
    seen = command.look(Kubectl(["--context=c"], answers), "ns", "m")
    assert (seen.pods[0].running, seen.pods[0].waiting, seen.pods[0].kv) == (2, 1, 0.5)
    assert all(asked[:3] == ["--context=c", "get", "--raw"] for asked in answers.asked)


def test_a_model_with_a_certificate_is_asked_over_tls() -> None:
    guarded = {**model(), "spec": {**SPEC, "tls": {"secretName": "c"}}}
    table = {"/llmdeployments/m": guarded, PODS: {"items": [READY]}, "/https:m-1:8000/proxy/metrics": METRICS}
    (pod,) = command.look(Kubectl([], Answers(table)), "ns", "m").pods
    assert pod.running == 2


def test_a_copy_of_a_pod_is_no_replica() -> None:
    copied = copy.deepcopy(READY)
    copied["metadata"] |= {"name": "m-1-debug", "ownerReferences": []}
    answers = Answers({"/llmdeployments/m": model(), PODS: {"items": [READY, copied]}, "metrics": METRICS})
    assert [pod.name for pod in command.look(Kubectl([], answers), "ns", "m").pods] == ["m-1"]


def test_without_the_right_to_pods_the_rest_is_shown() -> None:
    refusal = Refused('pods is forbidden: User "u" cannot list resource "pods"')
    seen = command.look(Kubectl([], Answers({"/llmdeployments/m": model(), PODS: refusal})), "ns", "m")
    assert seen.notes == [f"its pods cannot be read: {refusal}"]
    assert seen.conditions == CONDITIONS


def test_a_pod_without_metrics_is_shown_with_the_reason() -> None:
    table = {"/llmdeployments/m": model(), PODS: {"items": [READY]}, "metrics": Refused("connection refused")}
    (pod,) = command.look(Kubectl([], Answers(table)), "ns", "m").pods
    assert (pod.state, pod.kv, pod.note) == ("Ready", None, "connection refused")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ('Error from server (NotFound): llmdeployments.sheaf.dev "m" not found', "no LLMDeployment m in ns"),
        (
            "Error from server (NotFound): the server could not find the requested resource",
            "CRD is not installed",
        ),
        (
            'Error from server (Forbidden): llmdeployments "m" is forbidden',
            "you may not read LLMDeployments in ns",
        ),
        (
            "The connection to the server localhost:8080 was refused",
            "no answer from a cluster: The connection",
        ),
        (
            "error: You must be logged in to the server (Unauthorized)",
            "no answer from a cluster: error: You must",
        ),
    ],
)
def test_each_obstacle_is_one_line_that_says_what_to_do(words: str, said: str) -> None:
    with pytest.raises(Refused) as refusal:
        Kubectl([], Answers({"/llmdeployments/m": Failed(words)})).model("ns", "m")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("answer", ["<html>Please log in</html>", "", "[]"])
def test_an_answer_that_is_no_object_is_an_obstacle_too(answer: str) -> None:
    with pytest.raises(Refused, match="what answers is no Kubernetes API server"):
        Kubectl([], Answers({"/llmdeployments/m": answer})).model("ns", "m")


def test_without_kubectl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert command.main(["m"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "sheaf status: kubectl is not on PATH; install it, since the cluster is read with it\n"


def test_json_is_the_view(capsys: pytest.CaptureFixture[str]) -> None:
    table = {"namespace}": "ns", "/llmdeployments/m": model(), PODS: {"items": [READY]}, "metrics": METRICS}
    assert command.main(["m", "-o", "json"], Answers(table)) == 0
    expected = asdict(view.build(model(), [READY], {"m-1": parse(METRICS)}))
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(expected))


def test_outside_of_any_context_the_namespace_is_default(capsys: pytest.CaptureFixture[str]) -> None:
    failed = Failed("error: current-context must exist in order to minify")
    table = {"namespace}": failed, "/llmdeployments/m": Failed("Error from server (NotFound): x")}
    assert command.main(["m"], Answers(table)) == 1
    assert "no LLMDeployment m in default" in capsys.readouterr().err


def test_it_is_a_command_of_sheaf_and_brings_no_library_along() -> None:
    program = (
        "import sys; from sheaf_runtime.cli import main\n"
        "try: main(['status', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'kubernetes', 'pydantic', 'aiohttp', 'kopf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: sheaf status")
    assert done.stdout.splitlines()[-1] == "[]"
