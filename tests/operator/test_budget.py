"""The PodDisruptionBudget: when there is one, what it says, and that it is kept as it should be."""

from __future__ import annotations

import copy
from typing import Any

import kube_objects as k
import pytest
from sheaf_operator.desired import budget
from sheaf_operator.desired.actions import Apply, Delete

SEVERAL: dict[str, Any] = {"autoscaling": {"maxReplicas": 3}}
FIXED: dict[str, Any] = {"autoscaling": {"mode": "Disabled", "maxReplicas": 9}}


@pytest.mark.parametrize(
    ("fields", "there"),
    [
        ({}, False),
        (SEVERAL, True),
        ({**SEVERAL, "suspend": True}, False),
        ({**SEVERAL, "disruptionBudget": {"mode": "Disabled"}}, False),
        ({**FIXED, "replicas": 1}, False),
        ({**FIXED, "replicas": 2}, True),
        ({"autoscaling": {"mode": "External", "maxReplicas": 2}}, True),
    ],
)
def test_there_is_one_while_more_than_one_replica_may_run(fields: dict[str, Any], there: bool) -> None:
    given = k.spec(**fields)
    written = budget.actions(given, k.settled(given, budget=None))
    assert [type(action) for action in written] == ([Apply] if there else [])


@pytest.mark.parametrize(("given", "said"), [(2, 2), ("25%", "25%"), (0, 0)])
def test_a_number_stays_a_number_and_a_share_a_share(given: int | str, said: int | str) -> None:
    spec = k.spec(disruptionBudget={"maxUnavailable": given})
    made = budget.pod_disruption_budget(spec, "m", "ns", k.UID)["spec"]
    assert made["maxUnavailable"] == said
    assert type(made["maxUnavailable"]) is type(said)
    assert made["selector"] == {"matchLabels": {"sheaf.dev/deployment": "m"}}


def test_at_rest_nothing_is_written_and_a_change_by_hand_is_repaired() -> None:
    given = k.spec(**SEVERAL)
    settled = k.settled(given)
    assert budget.actions(given, settled) == []
    changed = copy.deepcopy(settled.budget)
    assert changed is not None
    changed["spec"]["maxUnavailable"] = 3
    (action,) = budget.actions(given, k.settled(given, budget=changed))
    assert isinstance(action, Apply)
    assert not action.create


def test_it_goes_with_the_need_for_it() -> None:
    (action,) = budget.actions(k.spec(), k.settled(k.spec(), budget=k.budget(k.spec(**SEVERAL))))
    assert action == Delete("PodDisruptionBudget", "m-predictor", "budget-uid")


def test_beside_somebody_elses_there_is_none() -> None:
    """Kubernetes answers the eviction of a pod that two select with 500: its node can never be drained."""
    given = k.spec(**SEVERAL)
    assert budget.actions(given, k.settled(given, budget=None, guarded=True)) == []
    (action,) = budget.actions(given, k.settled(given, guarded=True))
    assert action == Delete("PodDisruptionBudget", "m-predictor", "budget-uid")


def test_it_reaches_no_pod() -> None:
    given = k.spec(disruptionBudget={"maxUnavailable": 2})
    assert k.revision(given).hash == k.revision(k.spec()).hash
    assert k.revision(k.spec()).serves(given)


def test_a_count_that_somebody_else_set_counts() -> None:
    given = k.spec(**FIXED)
    assert [type(a) for a in budget.actions(given, k.settled(given, replicas=2, budget=None))] == [Apply]
    assert budget.actions(given, k.settled(given, replicas=1)) == []
