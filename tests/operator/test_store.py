"""The cache's store: in whatever order events, lists and answers arrive, the latest state is what counts."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sheaf_operator.cluster.store import Store

Json = dict[str, Any]
NAMES = ("a", "b", "c")


def obj(name: str, version: int, uid: str = "u", owner: str | None = None, namespace: str = "ns") -> Json:
    references = [{"uid": owner}] if owner else []
    metadata = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": str(version)}
    return {"metadata": {**metadata, "ownerReferences": references}}


def owners(o: Json) -> list[str]:
    return [reference["uid"] for reference in o["metadata"]["ownerReferences"]]


def held(store: Store) -> dict[str, str]:
    found = (store.get(name) for name in store.names())
    return {o["metadata"]["name"]: o["metadata"]["resourceVersion"] for o in found if o}


class History:
    """What the API server went through: every change with its number, and the whole state after each."""

    def __init__(self, changes: list[tuple[str, bool]]) -> None:
        state: dict[str, Json] = {}
        self.events: list[tuple[bool, Json]] = []
        self.states: list[dict[str, Json]] = [{}]
        for version, (name, wanted) in enumerate(changes, start=1):
            if wanted:
                state[name] = obj(name, version)
                self.events.append((True, state[name]))
            elif state.pop(name, None):
                self.events.append((False, obj(name, version)))
            self.states.append(dict(state))


histories = st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), min_size=1, max_size=20).map(History)


@given(histories, st.randoms(use_true_random=False))
def test_a_list_makes_good_whatever_was_lost_repeated_or_out_of_order(
    history: History, rng: random.Random
) -> None:
    """Events in any order, some missing, some twice, and lists in between, each later than the last."""
    store = Store(owners)
    events = [e for e in history.events for _ in range(rng.randint(0, 2))]
    rng.shuffle(events)
    versions = sorted(rng.sample(range(len(history.states)), rng.randint(0, len(history.states))))
    arrivals: list[Any] = [*events]
    for version in versions:
        start = next((i + 1 for i, a in reversed(list(enumerate(arrivals))) if isinstance(a, int)), 0)
        arrivals.insert(rng.randint(start, len(arrivals)), version)
    seen: dict[str, int] = {}
    for arrival in arrivals:
        if isinstance(arrival, int):
            store.replace(history.states[arrival].values(), arrival)
            truth = history.states[arrival]
            for name in NAMES:  # nothing is older than the list
                now = store.get(("ns", name))
                assert now or name not in truth or seen.get(name, 0) > arrival
        else:
            present, state = arrival
            (store.put if present else store.remove)(state)
            name = state["metadata"]["name"]
            seen[name] = max(seen.get(name, 0), int(state["metadata"]["resourceVersion"]))
    last = len(history.states) - 1
    store.replace(history.states[last].values(), last)
    assert held(store) == {n: o["metadata"]["resourceVersion"] for n, o in history.states[last].items()}
    for present, state in history.events:  # late events change nothing any more
        assert not (store.put if present else store.remove)(state)


@given(histories, st.randoms(use_true_random=False))
def test_all_events_in_any_order_are_enough(history: History, rng: random.Random) -> None:
    store = Store(owners)
    events = list(history.events)
    rng.shuffle(events)
    for present, state in events:
        (store.put if present else store.remove)(state)
    assert held(store) == {n: o["metadata"]["resourceVersion"] for n, o in history.states[-1].items()}


def test_a_late_deletion_of_a_namesake_does_not_end_its_successor() -> None:
    store = Store(owners)
    store.put(obj("a", 5, uid="new"))
    assert not store.remove(obj("a", 4, uid="old"))
    assert held(store) == {"a": "5"}


def test_the_answer_to_a_write_outlives_an_older_list_and_event() -> None:
    store = Store(owners)
    store.put(obj("a", 9))
    assert store.replace([obj("a", 3)], 7) == []
    assert not store.put(obj("a", 8))
    assert held(store) == {"a": "9"}


def test_a_list_of_one_namespace_ends_nothing_elsewhere() -> None:
    store = Store(owners)
    store.put(obj("a", 1, namespace="one"))
    store.put(obj("b", 2, namespace="two"))
    (news,) = store.replace([], 5, "one")
    assert news["metadata"]["name"] == "a"
    assert held(store) == {"b": "2"}
    assert not store.put(obj("a", 4, namespace="one"))
    assert store.put(obj("c", 4, namespace="two"))


def test_a_store_set_back_to_a_backup_is_believed() -> None:
    """After etcd was restored, versions are smaller than those seen before."""
    store = Store(owners)
    store.replace([obj("a", 90), obj("b", 95)], 100)
    store.put(obj("c", 120))
    store.replace([obj("a", 40)], 50)
    assert held(store) == {"a": "40"}
    assert store.put(obj("b", 51))


def test_a_store_that_was_set_back_and_has_grown_past_the_last_list_is_believed() -> None:
    """A list is never older than what was seen before it began; what is seen meanwhile may be later."""
    store = Store(owners)
    store.replace([obj("a", 90)], 100)
    store.put(obj("a", 140))
    store.put(obj("c", 150))
    store.remove(obj("b", 145))
    newest = store.newest()
    assert newest == 150
    store.replace([obj("a", 90), obj("b", 85)], 120, newest=newest)
    assert held(store) == {"a": "90", "b": "85"}
    newest = store.newest()
    store.put(obj("d", 130))
    store.replace([obj("a", 125)], 125, newest=newest)
    assert held(store) == {"a": "125", "d": "130"}


@given(histories, histories, st.randoms(use_true_random=False))
def test_one_list_after_a_store_was_set_back_is_the_truth(
    before: History, after: History, rng: random.Random
) -> None:
    """Whatever was seen of the time that never was, and however far the new one has come."""
    store = Store(owners)
    base = rng.randint(0, len(before.states) - 1)
    for present, state in before.events:
        (store.put if present else store.remove)(state)
    truth = dict(before.states[base])
    version = base
    for present, state in after.events:
        version = base + int(state["metadata"]["resourceVersion"])
        name = state["metadata"]["name"]
        truth.pop(name, None)
        if present:
            truth[name] = obj(name, version, uid="later")
    newest = store.newest()
    store.replace(truth.values(), version, newest=newest)
    assert held(store) == {n: o["metadata"]["resourceVersion"] for n, o in truth.items()}


@pytest.mark.parametrize("end", ["replaced", "removed", "unlisted"])
def test_facets_follow_the_objects(end: str) -> None:
    store = Store(owners)
    store.put(obj("a", 1, owner="x"))
    assert [o["metadata"]["name"] for o in store.of("x")] == ["a"]
    if end == "replaced":
        store.put(obj("a", 2, owner="y"))
    elif end == "removed":
        store.remove(obj("a", 2))
    else:
        store.replace([], 2)
    assert store.of("x") == []
    assert len(store.of("y")) == (end == "replaced")
