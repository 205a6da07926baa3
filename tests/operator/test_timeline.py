import kube_objects as k
from sheaf_operator.status.timeline import timeline

OURS = k.revision(k.spec())


def phases(entries: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(e["phase"], e["seconds"]) for e in entries]


def test_the_way_to_ready_in_seconds() -> None:
    observed = k.settled(k.spec())
    assert phases(timeline(observed, OURS.hash)) == [
        ("Accepted", 0),
        ("PodCreated", 10),
        ("Scheduled", 1),
        ("ContainerStarted", 2),
        ("Ready", 18),
    ]


def test_a_download_is_a_phase_of_its_own() -> None:
    pod = k.pod("p", OURS, ready=True)
    pod["status"]["initContainerStatuses"] = [
        {"state": {"terminated": {"finishedAt": "2026-01-01T00:00:12Z", "exitCode": 0}}}
    ]
    assert ("ModelFetched", 1) in phases(timeline(k.settled(k.spec(), pods=(pod,)), OURS.hash))


def test_what_has_not_happened_is_not_listed() -> None:
    observed = k.settled(k.spec(), ready=0)
    assert [p for p, _ in phases(timeline(observed, OURS.hash))][-1] == "ContainerStarted"


def test_history_is_not_rewritten_by_later_pods() -> None:
    before = [{"phase": "Ready", "time": "2026-01-01T00:00:31Z", "seconds": 18}]
    owner = k.owner(status={"revision": OURS.hash, "timeline": before})
    later = k.pod("p2", OURS, ready=True, created="2026-01-05T00:00:00Z")
    assert timeline(k.settled(k.spec(), owner=owner, pods=(later,)), OURS.hash) == before


def test_a_pod_that_was_taken_back_keeps_its_durations() -> None:
    service = k.service(OURS)
    service["metadata"]["creationTimestamp"] = "2026-01-01T00:00:01Z"
    late = k.owner(creationTimestamp="2026-01-02T00:00:00Z")
    observed = k.settled(k.spec(), owner=late, inference_service=service)
    assert [seconds for _, seconds in phases(timeline(observed, OURS.hash))] == [0, 0, 1, 2, 18]


def test_a_new_revision_begins_anew_with_its_pod() -> None:
    owner = k.owner(
        generation=2, status={"revision": "old", "timeline": [{"phase": "Ready", "time": "x", "seconds": 1}]}
    )
    observed = k.settled(k.spec(), owner=owner)
    entries = timeline(observed, OURS.hash)
    assert entries[0] == {"phase": "Accepted", "time": "2026-01-01T00:00:10Z", "seconds": 0}
    assert timeline(k.settled(k.spec(), owner=owner, pods=()), OURS.hash) == []
