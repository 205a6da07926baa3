"""What Deployment, ReplicaSets and KServe say, and that the address outlives it."""

from dataclasses import replace

import kube_objects as k
import pytest
from sheaf_operator.api import names
from sheaf_operator.cluster.observed import Observed
from sheaf_operator.problems.cause import Question, cause, questions
from sheaf_operator.problems.problem import Problem
from sheaf_operator.status.build import build_status
from sheaf_operator.status.situation import Situation
from standstill import GPU, OURS, Json, after, event, found


def failure(kind: str, status: str, reason: str, message: str) -> Json:
    told = {"type": kind, "status": status, "reason": reason, "message": message}
    return told | {"lastTransitionTime": "2026-01-01T00:00:20Z"}


REFUSED = failure("ReplicaFailure", "True", "FailedCreate", 'pods "x" is forbidden: exceeded quota: q')


def test_the_replica_set_may_be_the_first_to_know() -> None:
    replica_set = {"metadata": {"name": "rs"}, "status": {"conditions": [REFUSED]}}
    problem = found(replica_sets=(replica_set,))
    assert problem is not None
    assert problem.reason == "QuotaExceeded"
    assert found(deployment=k.deployment(conditions=[REFUSED])) == problem
    no_set = failure(
        "Progressing", "False", "ReplicaSetCreateError", 'admission webhook "x" denied the request'
    )
    assert (found(deployment=k.deployment(conditions=[no_set])) or problem).reason == "AdmissionDenied"


def test_the_deadline_of_the_deployment_counts_unless_a_model_loads() -> None:
    late = failure("Progressing", "False", "ProgressDeadlineExceeded", 'ReplicaSet "x" has timed out')
    problem = found(deployment=k.deployment(conditions=[late]))
    assert problem is not None
    assert problem.reason == "ProgressDeadlineExceeded"
    assert found(k.pod("p1", OURS), deployment=k.deployment(conditions=[late])) is None


def test_kserve_that_does_not_carry_out_an_update_is_told_in_its_own_words() -> None:
    old, new = OURS, k.revision(k.spec(engine={"maxModelLen": 9}))
    service = k.service(new)
    service["metadata"]["creationTimestamp"] = "2026-01-01T00:00:10Z"
    observed = k.settled(k.spec(), pods=(k.pod("p1", old, ready=True),), inference_service=service)
    assert cause(observed, new.hash, GPU, after(5)) is None
    assert questions(observed, new.hash, after(5)) == []
    assert questions(observed, new.hash, after(15)) == [Question("InferenceService", "m")]
    silent = cause(observed, new.hash, GPU, after(90))
    assert silent is not None
    assert silent.reason == "KServeSilent"
    words = 'fails to reconcile predictor: Deployment.apps "m-predictor" is invalid: spec.template.labels'
    told = replace(observed, events=(event("InferenceService", "m", "InternalError", words),))
    refused = cause(told, new.hash, GPU, after(30))
    assert refused is not None
    assert refused.reason == "KServeRefused"
    assert words in refused.said
    service["status"] = {
        "modelStatus": {"transitionStatus": "InvalidSpec", "lastFailureInfo": {"message": "bad"}}
    }
    invalid = cause(observed, new.hash, GPU, after(5))
    assert invalid is not None
    assert invalid.said == "KServe: bad"


def test_what_kserve_carried_out_is_not_asked_about() -> None:
    replica_set = {"metadata": {"name": "rs", "labels": {names.LABEL_REVISION: OURS.hash}}}
    service = k.service(OURS)
    service["metadata"]["creationTimestamp"] = "2026-01-01T00:00:10Z"
    observed = k.settled(k.spec(), pods=(), replica_sets=(replica_set,), inference_service=service)
    assert questions(observed, OURS.hash, after(3600)) == []
    assert cause(observed, OURS.hash, GPU, after(3600)) is None


def test_the_address_outlives_what_fails() -> None:
    observed = k.settled(k.spec())
    url = build_status(Situation(k.spec(), observed, OURS, after(60)), "cluster.local")["url"]
    failed = Situation(k.spec(), observed, OURS, after(60), Problem("ApplyFailed", "timeout"), applied=False)
    assert build_status(failed, "cluster.local")["url"] == url
    away = Observed(k.owner(status={"url": url}), kserve=False)
    gone = Situation(k.spec(), away, OURS, after(60), Problem("KServeMissing", "no kind"))
    assert build_status(gone, "cluster.local")["url"] == url


def test_kserve_2650_a_conflict_that_kserve_repeats_is_no_complaint() -> None:
    service = k.service(OURS)
    service["metadata"]["creationTimestamp"] = "2026-01-01T00:00:10Z"
    conflict = event("InferenceService", "m", "InternalError", "the object has been modified; please apply")
    observed = k.settled(k.spec(), pods=(), deployment=None, inference_service=service, events=(conflict,))
    assert cause(observed, OURS.hash, GPU, after(30)) is None


def test_a_model_that_is_suspended_is_at_rest() -> None:
    service = k.service(OURS, suspend=True)
    service["metadata"]["creationTimestamp"] = "2026-01-01T00:00:10Z"
    observed = k.settled(k.spec(suspend=True), pods=(), deployment=None, inference_service=service)
    assert questions(observed, OURS.hash, after(3600)) == []
    assert cause(observed, OURS.hash, GPU, after(3600)) is None


@pytest.mark.parametrize(("seconds", "reason"), [(5, None), (15, "DeploymentOrphaned")])
def test_a_deployment_that_lost_its_owner_is_told(seconds: float, reason: str | None) -> None:
    """Not at once: one that the garbage collector is about to delete looks the same."""
    service = k.service(OURS)
    service["metadata"]["creationTimestamp"] = "2026-01-01T00:00:10Z"
    observed = k.settled(k.spec(), pods=(), deployment=None, inference_service=service, stray=k.deployment(2))
    problem = cause(observed, OURS.hash, GPU, after(seconds))
    assert (problem and problem.reason) == reason
    if problem:
        assert "m-predictor" in problem.message
        assert "rollout.restartedAt" in problem.message
